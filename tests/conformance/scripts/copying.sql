-- COPY in and out, in every format, with its errors.
CREATE SCHEMA copying;
SET search_path = copying, public;
CREATE TABLE c (id int PRIMARY KEY, t text, n numeric, at timestamptz, b bytea, a int[]);
COPY c (id, t, n) FROM STDIN;
1	plain	1.50
2	tab\tand\nline	\N
3	\N	-0.000001
\.
COPY c FROM STDIN WITH (FORMAT csv, HEADER match, NULL 'none', QUOTE '''');
id,t,n,at,b,a
4,'quoted, with ''''',none,2026-01-02 03:04:05+00,\x00ff,'{1,2,NULL}'
5,none,12,none,none,none
\.
COPY c (id, t) FROM STDIN;
6	fine
6	twice
\.
COPY c (id, n) FROM STDIN (ON_ERROR ignore, LOG_VERBOSITY verbose);
7	1
x	2
8	not a number
9	3
\.
COPY c (id, t) FROM STDIN WHERE id % 2 = 0;
10	even
11	odd
12	even
\.
SET timezone = 'UTC';
COPY (SELECT * FROM c ORDER BY id) TO STDOUT;
COPY (SELECT * FROM c ORDER BY id) TO STDOUT WITH (FORMAT csv, HEADER, FORCE_QUOTE (t), DELIMITER ';');
COPY c FROM '/nonexistent';
COPY c TO PROGRAM 'true';
CREATE TABLE many (id int, v text, w float8);
INSERT INTO many SELECT n, md5(n::text), n / 7.0 FROM generate_series(1, 50000) n;
\copy many TO many.binary WITH (FORMAT binary)
\copy many TO many.csv WITH (FORMAT csv)
CREATE TABLE back (LIKE many);
\copy back FROM many.binary WITH (FORMAT binary)
\copy back FROM many.csv WITH (FORMAT csv)
SELECT count(*), sum(id), md5(string_agg(v || w, '' ORDER BY id)) FROM back;
BEGIN;
TRUNCATE back;
\copy back FROM many.csv WITH (FORMAT csv, FREEZE)
COMMIT;
SELECT count(*), pg_relation_size('back') FROM back;
