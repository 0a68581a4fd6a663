-- Triggers of every kind, rules, row security, functions, procedures that commit, notices, errors.
CREATE SCHEMA programs;
SET search_path = programs, public;

CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TABLE account (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    balance numeric(12, 2) NOT NULL DEFAULT 0 CHECK (balance >= 0),
    doubled numeric GENERATED ALWAYS AS (balance * 2) STORED,
    state mood NOT NULL DEFAULT 'ok',
    share percent
);
CREATE TABLE journal (n int GENERATED ALWAYS AS IDENTITY, what text, name text, before numeric, after numeric);

CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO journal (what, name, before, after)
    VALUES (TG_OP || ' ' || TG_WHEN, coalesce(NEW.name, OLD.name), OLD.balance, NEW.balance);
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER rows_after AFTER INSERT OR UPDATE OR DELETE ON account FOR EACH ROW EXECUTE FUNCTION note_change();

CREATE FUNCTION trim_name() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.name := btrim(NEW.name);
    IF NEW.name = '' THEN RAISE EXCEPTION 'a name is empty' USING ERRCODE = '22023', HINT = 'give one'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER rows_before BEFORE INSERT OR UPDATE OF name ON account FOR EACH ROW EXECUTE FUNCTION trim_name();

CREATE FUNCTION count_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE changed int;
BEGIN
    SELECT count(*) INTO changed FROM fresh;
    RAISE NOTICE '% rows by one %', changed, TG_OP;
    RETURN NULL;
END $$;
CREATE TRIGGER statements AFTER UPDATE ON account REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION count_changed();

CREATE FUNCTION at_the_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE NOTICE 'deferred: %', NEW.name; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER deferred_one AFTER INSERT ON account DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION at_the_end();

INSERT INTO account (name, balance, share) VALUES (' ann ', 100, 10), ('bob', 50.5, NULL), ('cyd', 0, 100) RETURNING *;
INSERT INTO account (name, balance) VALUES ('', 1);
INSERT INTO account (name, balance) VALUES ('ann', 1);
INSERT INTO account (name, share) VALUES ('dan', 101);
UPDATE account SET balance = balance - 60 WHERE name = 'bob';
UPDATE account SET balance = balance + 1;
DELETE FROM account WHERE name = 'cyd' RETURNING old.name, new.name;
INSERT INTO account (name, balance) VALUES ('ann', 7) ON CONFLICT (name) DO UPDATE SET balance = account.balance + EXCLUDED.balance;
MERGE INTO account a USING (VALUES ('ann', 1), ('eve', 2)) v(name, amount) ON a.name = v.name
    WHEN MATCHED THEN UPDATE SET balance = a.balance + v.amount
    WHEN NOT MATCHED THEN INSERT (name, balance) VALUES (v.name, v.amount)
    RETURNING merge_action(), a.name, a.balance;
SELECT * FROM account ORDER BY id;
SELECT * FROM journal ORDER BY n;

CREATE PROCEDURE fill(rows int) LANGUAGE plpgsql AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS filled (n int);
    FOR i IN 1..rows LOOP
        INSERT INTO filled VALUES (i);
        IF i % 3 = 0 THEN COMMIT; ELSIF i % 5 = 0 THEN ROLLBACK; END IF;
    END LOOP;
END $$;
CALL fill(20);
SELECT array_agg(n ORDER BY n) FROM filled;
BEGIN;
CALL fill(3);
ROLLBACK;
DO $$ BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN RAISE WARNING 'caught %: %', SQLSTATE, SQLERRM; END $$;

CREATE FUNCTION fibonacci(upto int) RETURNS TABLE (n int, value numeric) LANGUAGE sql AS $$
    WITH RECURSIVE f(n, a, b) AS (SELECT 1, 0::numeric, 1::numeric UNION ALL SELECT n + 1, b, a + b FROM f WHERE n < upto)
    SELECT n, a FROM f $$;
SELECT * FROM fibonacci(12);

CREATE VIEW rich AS SELECT name, balance FROM account WHERE balance > 10 WITH CHECK OPTION;
INSERT INTO rich VALUES ('fay', 5);
INSERT INTO rich VALUES ('fay', 55);
CREATE MATERIALIZED VIEW totals AS SELECT state, sum(balance) AS total FROM account GROUP BY state;
CREATE UNIQUE INDEX ON totals (state);
UPDATE account SET state = 'happy' WHERE balance > 50;
REFRESH MATERIALIZED VIEW CONCURRENTLY totals;
SELECT * FROM totals ORDER BY state;
CREATE RULE no_delete AS ON DELETE TO account DO INSTEAD NOTHING;
DELETE FROM account;

CREATE TABLE measured (at date NOT NULL, sensor int, value float8) PARTITION BY RANGE (at);
CREATE TABLE measured_2025 PARTITION OF measured FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY HASH (sensor);
CREATE TABLE measured_2025_0 PARTITION OF measured_2025 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE measured_2025_1 PARTITION OF measured_2025 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE measured_rest PARTITION OF measured DEFAULT;
INSERT INTO measured SELECT date '2024-12-01' + n, n % 7, n / 8.0 FROM generate_series(1, 500) n;
SELECT tableoid::regclass, count(*), sum(value) FROM measured GROUP BY 1 ORDER BY tableoid::regclass::text;
ALTER TABLE measured DETACH PARTITION measured_rest;
EXPLAIN (COSTS OFF) SELECT * FROM measured WHERE at = '2025-05-05' AND sensor = 3;

ALTER TABLE account ENABLE ROW LEVEL SECURITY;
CREATE ROLE reader NOLOGIN;
GRANT reader TO CURRENT_USER WITH SET TRUE;
GRANT USAGE ON SCHEMA programs TO reader;
GRANT SELECT ON account TO reader;
CREATE POLICY happy_only ON account FOR SELECT TO reader USING (state = 'happy');
SET ROLE reader;
SELECT name, state FROM account ORDER BY name;
INSERT INTO account (name) VALUES ('gus');
RESET ROLE;
DROP OWNED BY reader;
DROP ROLE reader;
CREATE EVENT TRIGGER all_ddl ON ddl_command_end EXECUTE FUNCTION note_change();
SELECT current_user, session_user, current_database(), pg_has_role('pg_monitor', 'MEMBER'), current_setting('is_superuser');
COMMENT ON TABLE account IS 'Who has how much';
\d+ account
\df programs.*
