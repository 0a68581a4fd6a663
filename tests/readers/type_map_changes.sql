-- Changes for the database of type_map.sql, to be applied while the sync runs: every value of the first load
-- comes once more, through the stream, and then rows change, move and go.

SET TimeZone = 'UTC';
SET client_encoding = 'UTF8';

-- Each row again under a new key. Values are copied by Postgres, so that this file names no columns twice.
DO $$
DECLARE
  t record;
  others text;
BEGIN
  FOR t IN
    SELECT c.oid, c.oid::regclass AS name, quote_ident(k.attname) AS key
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary AND i.indnatts = 1
    JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = i.indkey[0]
    WHERE n.nspname IN ('types', 'names', 'collisions', 'Sales (EU)', 'shapes') AND c.relkind = 'r' AND k.atttypid = 'int4'::regtype
    ORDER BY c.oid
  LOOP
    SELECT string_agg(', ' || quote_ident(a.attname), '' ORDER BY a.attnum) INTO others
    FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND quote_ident(a.attname) <> t.key;
    EXECUTE format('INSERT INTO %s (%s%s) SELECT %s + 1000%s FROM %s', t.name, t.key, others, t.key, others, t.name);
  END LOOP;
END $$;

-- Large values that an update leaves untouched are not sent: they must not become null.
UPDATE types.texts SET v = 'touched' WHERE id IN (7, 1007);
UPDATE types.binaries SET id = 2004 WHERE id = 1004;

UPDATE types.decimals SET money_like = money_like + 0.01 WHERE id = 4;
UPDATE types.arrays SET t = t || ARRAY['more'], f8 = NULL WHERE id = 1;
UPDATE names."Order Lines" SET "unit price" = -1, "日本" = 'changed' WHERE "Id" = 1;
UPDATE names.colliding_columns SET "Name" = 'Changed';
INSERT INTO public.orders (v) VALUES ('streamed');
UPDATE public.orders SET v = 'changed' WHERE id = 1;

-- Keys that change, rows that move between partitions, rows that go.
UPDATE shapes.partitioned SET region = 'eu' WHERE id % 5 = 0;
UPDATE shapes.partitioned SET region = 'us' WHERE id % 7 = 0;
DELETE FROM shapes.partitioned WHERE id % 4 = 0;
INSERT INTO shapes.partitioned VALUES (101, 'eu', 'new'), (102, 'af', 'new'), (103, 'us', NULL);
UPDATE shapes.composite_key SET a = 'y' WHERE b = 2;
DELETE FROM shapes.composite_key WHERE a = '';
INSERT INTO shapes.inserts_only VALUES (1, 'twice'), (2, '日本');
UPDATE shapes.full_identity SET b = 'changed' WHERE a = 1;
INSERT INTO shapes.full_identity VALUES (3, 'new');
UPDATE shapes.index_identity SET b = 'changed', a = 10 WHERE a = 1;
DELETE FROM shapes.index_identity WHERE a = 2;
UPDATE shapes.text_key SET id = 'moved ' || id WHERE v > 2;
DELETE FROM shapes.text_key WHERE id = '';
UPDATE shapes.parent SET id = id + 1000000 WHERE id <= 3;

-- A savepoint that is rolled back leaves nothing; what surrounds it stays.
BEGIN;
INSERT INTO shapes.parent VALUES (5001, 'before the savepoint');
SAVEPOINT s;
INSERT INTO shapes.parent VALUES (5002, 'never');
DELETE FROM shapes.parent WHERE id = 4;
ROLLBACK TO s;
INSERT INTO shapes.parent VALUES (5003, 'after the savepoint');
COMMIT;
BEGIN;
DELETE FROM shapes.parent;
ROLLBACK;
