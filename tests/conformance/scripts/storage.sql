-- What lies in files: TOAST, every index type, VACUUM FULL, CLUSTER, rewrites, truncation, sizes, large objects.
CREATE SCHEMA storage;
SET search_path = storage, public;
CREATE TABLE wide (id int PRIMARY KEY, plain text STORAGE EXTERNAL, packed text COMPRESSION pglz, packed4 text, raw bytea) WITH (autovacuum_enabled = off);
INSERT INTO wide SELECT n, repeat(md5(n::text), 400), repeat('abc' || n, 9000), repeat(md5(n::text) || 'zz', 900),
    decode(repeat(md5((n * 7)::text), 3000), 'hex') FROM generate_series(1, 40) n;
SELECT sum(length(plain)), sum(length(packed)), sum(length(packed4)), sum(length(raw)) FROM wide;
SELECT md5(string_agg(md5(plain || packed || packed4 || encode(raw, 'hex')), '' ORDER BY id)) FROM wide;
SELECT id, pg_column_compression(packed), substr(plain, 12000, 20) FROM wide WHERE id % 13 = 0 ORDER BY id;
UPDATE wide SET plain = plain || 'tail' WHERE id <= 10;
DELETE FROM wide WHERE id > 30;
VACUUM (FULL, ANALYZE) wide;
SELECT count(*), md5(string_agg(md5(plain || packed), '' ORDER BY id)) FROM wide;

CREATE TABLE points (id int, name text, tags text[], body tsvector, at point, span int4range, doc jsonb, ip inet, day date) WITH (autovacuum_enabled = off);
INSERT INTO points SELECT n, md5(n::text), ARRAY[(n % 10)::text, (n % 77)::text], to_tsvector('simple', md5(n::text) || ' word' || n % 50),
    point(n % 100, n / 100), int4range(n, n + 10), jsonb_build_object('k', n % 30, 'n', n), ('10.0.' || n / 256 % 256 || '.' || n % 256)::inet, date '2020-01-01' + n / 50
    FROM generate_series(1, 10000) n;
CREATE INDEX b_tree ON points USING btree (id) INCLUDE (name);
CREATE UNIQUE INDEX b_tree_unique ON points ((id * 2)) WHERE id > 10;
CREATE INDEX hashed ON points USING hash (name);
CREATE INDEX gin_tags ON points USING gin (tags) WITH (fastupdate = on);
CREATE INDEX gin_body ON points USING gin (body);
CREATE INDEX gin_doc ON points USING gin (doc jsonb_path_ops);
CREATE INDEX gist_at ON points USING gist (at);
CREATE INDEX gist_span ON points USING gist (span);
CREATE INDEX spgist_at ON points USING spgist (at);
CREATE INDEX spgist_name ON points USING spgist (name);
CREATE INDEX spgist_ip ON points USING spgist (ip);
CREATE INDEX brin_day ON points USING brin (day) WITH (pages_per_range = 4);
CREATE INDEX CONCURRENTLY later ON points (day, id DESC);
INSERT INTO points SELECT n, md5(n::text), ARRAY['new'], to_tsvector('simple', 'fresh'), point(1, 1), int4range(n, n), '{}', '10.9.9.9', '2030-01-01' FROM generate_series(20001, 22000) n;
DELETE FROM points WHERE id % 3 = 0;
VACUUM (ANALYZE) points;
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT name FROM points WHERE id = 77;
SELECT name FROM points WHERE id = 77;
SELECT id FROM points WHERE name = md5('4321') AND id % 3 <> 0;
SELECT count(*), sum(id) FROM points WHERE tags @> '{7,11}';
SELECT count(*), sum(id) FROM points WHERE body @@ 'word42'::tsquery;
SELECT count(*), sum(id) FROM points WHERE doc @> '{"k": 7}';
SELECT count(*), sum(id) FROM points WHERE at <@ box '(10,10),(20,20)';
SELECT id FROM points WHERE at <@ box '(0,0),(30,90)' ORDER BY at <-> point(20.2, 50.1), id LIMIT 5;
SELECT count(*), sum(id) FROM points WHERE span @> 5000;
SELECT count(*), sum(id) FROM points WHERE name ^@ 'a0';
SELECT count(*), sum(id) FROM points WHERE ip <<= '10.0.7.0/24';
SELECT count(*), sum(id) FROM points WHERE day BETWEEN '2020-03-01' AND '2020-03-31';
SELECT count(*), sum(id) FROM points WHERE day = '2030-01-01';
RESET enable_seqscan;
REINDEX TABLE CONCURRENTLY points;
CLUSTER points USING b_tree;
ALTER TABLE points ADD EXCLUDE USING gist (span WITH &&) WHERE (id > 30000);
ALTER TABLE points ADD COLUMN added int DEFAULT 5, ALTER COLUMN id TYPE bigint;
SELECT count(*), sum(id), sum(added), md5(string_agg(name, '' ORDER BY id)) FROM points;
SELECT relname, pg_relation_size(oid), relpages, reltuples FROM pg_class WHERE relnamespace = 'storage'::regnamespace AND relname IN ('points', 'wide') ORDER BY 1;

CREATE TABLE shrinking WITH (autovacuum_enabled = off) AS SELECT n, repeat('x', 500) AS v FROM generate_series(1, 4000) n;
SELECT pg_relation_size('shrinking');
DELETE FROM shrinking WHERE n > 100;
VACUUM (TRUNCATE, FREEZE) shrinking;
SELECT pg_relation_size('shrinking'), count(*) FROM shrinking;
BEGIN;
TRUNCATE shrinking;
SELECT pg_relation_size('shrinking');
INSERT INTO shrinking VALUES (1, 'in the new file');
ROLLBACK;
SELECT pg_relation_size('shrinking'), count(*), sum(n) FROM shrinking;
TRUNCATE shrinking RESTART IDENTITY;
INSERT INTO shrinking SELECT n, 'again' FROM generate_series(1, 10) n;
SELECT pg_relation_size('shrinking'), count(*), sum(n) FROM shrinking;
ANALYZE;
CHECKPOINT;

SELECT lo_create(770001), lo_from_bytea(770002, decode(repeat('00ff', 50000), 'hex'));
SELECT lo_put(770001, 100000, 'sparse behind a hole');
SELECT length(lo_get(770001)), md5(lo_get(770001)), encode(lo_get(770001, 100007, 6), 'escape');
BEGIN;
SELECT lo_open(770002, x'60000'::int) AS handle \gset
SELECT lo_lseek64(:handle, 70000, 0), md5(loread(:handle, 4000)), lowrite(:handle, 'written'), lo_tell64(:handle);
SELECT lo_truncate64(:handle, 74003), lo_close(:handle);
COMMIT;
SELECT length(lo_get(770002)), encode(lo_get(770002, 73995, 100), 'escape');
SELECT lo_unlink(770001);
SELECT lo_get(770001);
SELECT loid, pageno, md5(data) FROM pg_largeobject WHERE loid = 770002 ORDER BY pageno LIMIT 3;
SELECT oid FROM pg_largeobject_metadata ORDER BY oid;
SELECT lo_export(770002, '/nonexistent/file');
