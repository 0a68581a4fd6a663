-- A database with a column for every row of the type map, and the values that break type maps.
--
-- Load it into an empty database of PostgreSQL 14 to 18 with pgvector (psql -v ON_ERROR_STOP=1 -f). Then
-- start the sync, apply type_map_changes.sql while it runs, and let type_map_compare.py judge: the first rows
-- reach the lake by the first load, the others by the stream, and both must read the same.
--
-- Tables named inserts_only* have no key and reach the lake by inserts alone.

SET client_min_messages = warning;
SET standard_conforming_strings = on;
SET TimeZone = 'UTC';
SET client_encoding = 'UTF8';

CREATE EXTENSION IF NOT EXISTS vector;
CREATE EXTENSION IF NOT EXISTS hstore;
CREATE EXTENSION IF NOT EXISTS citext;
CREATE SCHEMA types;
CREATE SCHEMA names;
CREATE SCHEMA collisions;
CREATE SCHEMA "Sales (EU)";
CREATE SCHEMA shapes;

-- Numbers ------------------------------------------------------------------------------------------------

CREATE TABLE types.integers (id int PRIMARY KEY, b bool, i2 int2, i4 int4, i8 int8, o oid, x xid);
INSERT INTO types.integers VALUES
  (1, true,  0, 0, 0, 0, '0'),
  (2, false, 32767, 2147483647, 9223372036854775807, 4294967295, '4294967295'),
  (3, NULL,  -32768, -2147483648, -9223372036854775808, 2147483648, '2147483648'),
  (4, NULL,  NULL, NULL, NULL, NULL, NULL);

CREATE TABLE types.floats (id int PRIMARY KEY, f4 float4, f8 float8);
INSERT INTO types.floats VALUES
  (1, 0, 0), (2, '-0', '-0'), (3, 'NaN', 'NaN'), (4, 'Infinity', 'Infinity'), (5, '-Infinity', '-Infinity'),
  (6, 3.4028235e38, 1.7976931348623157e308), (7, 1e-45, 5e-324), (8, 1.17549435e-38, 2.2250738585072014e-308),
  (9, 0.1, 0.1), (10, 16777217, 9007199254740993), (11, 1e10, 1e23), (12, -1.5, 0.30000000000000004), (13, NULL, NULL);

CREATE TABLE types.decimals (
  id int PRIMARY KEY, money_like numeric(10,2), whole numeric(5), widest numeric(38,0), finest numeric(38,38),
  both_ends numeric(38,18), round_hundreds numeric(3,-2), round_far numeric(30,-8), tiny numeric(3,5), tiny_wide numeric(2,38));
INSERT INTO types.decimals VALUES
  (1, 0, 0, 0, 0, 0, 0, 0, 0, 0),
  (2, 99999999.99, 99999, 99999999999999999999999999999999999999, 0.99999999999999999999999999999999999999,
      99999999999999999999.999999999999999999, 99900, 99999999999999999999999999999900000000, 0.00999,
      0.00000000000000000000000000000000000099),
  (3, -99999999.99, -99999, -99999999999999999999999999999999999999, -0.99999999999999999999999999999999999999,
      -99999999999999999999.999999999999999999, -99900, -99999999999999999999999999999900000000, -0.00999,
      -0.00000000000000000000000000000000000099),
  (4, 1.5, 7, 1, 0.00000000000000000000000000000000000001, 0.000000000000000001, 12345, 123456789, 0.00001,
      0.00000000000000000000000000000000000001),
  (5, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
  -- What a Delta decimal cannot hold: null, and a dead letter, under the default policy.
  (6, 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 'NaN');

-- Past 38 digits, or without bound: strings, exact, and so NaN and Infinity have a text.
CREATE TABLE types.wide_numerics (
  id int PRIMARY KEY, unbounded numeric, wide numeric(60,10), wide_negative numeric(35,-10), wide_small numeric(5,45));
INSERT INTO types.wide_numerics VALUES
  (1, 0, 0, 0, 0),
  (2, 123456789012345678901234567890123456789012345678901234567890.12345678901234567890,
      12345678901234567890123456789012345678901234567890.0123456789,
      123456789012345678901234567890123450000000000, 0.000000000000000000000000000000000000000012345),
  (3, -0.000000000000000000000000000000000000000000000000000001, -0.0000000001, -10000000000, -0.00000000000000000000000000000000000000001),
  (4, 1.10, 1.10, NULL, NULL), (5, 1e100, NULL, NULL, NULL), (6, 'NaN', 'NaN', 'NaN', 'NaN'),
  (7, NULL, NULL, NULL, NULL), (8, 1.0000000000, 1, 15000000000, 0);
-- Only a numeric without bounds holds Infinity.
INSERT INTO types.wide_numerics (id, unbounded) VALUES (9, 'Infinity'), (10, '-Infinity');

-- Dates and times ----------------------------------------------------------------------------------------

CREATE TABLE types.dates (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz);
INSERT INTO types.dates VALUES
  (1, '1970-01-01', '1970-01-01 00:00:00', '1970-01-01 00:00:00+00'),
  (2, '2026-11-21', '2026-11-21 09:40:12.123456', '2026-11-21 09:40:12.123456+05:30'),
  (3, '1969-12-31', '1969-12-31 23:59:59.999999', '1969-12-31 23:59:59.999999+00'),
  (4, '1899-12-31', '1899-12-31 23:59:59.5', '1899-12-31 23:59:59.5+00'),
  (5, '1582-10-04', '1582-10-04 12:00:00', '1582-10-04 12:00:00+00'),
  (6, '1582-10-15', '1582-10-15 12:00:00', '1582-10-15 12:00:00+00'),
  (7, '1500-02-28', '1500-02-28 01:02:03.000004', '1500-02-28 01:02:03.000004+00'),
  (8, '0001-01-01', '0001-01-01 00:00:00', '0001-01-01 00:00:00+00'),
  (9, '9999-12-31', '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999999+00'),
  (10, '2000-02-29', '2000-02-29 23:59:59.999999', '2016-12-31 23:59:60+00'),
  (11, '1883-11-18', '1883-11-18 12:03:58', '1883-11-18 12:03:58-08'),
  (12, NULL, NULL, NULL);

-- Past the years that most tools think of. A table of its own: a reader that misses here misses only here.
CREATE TABLE types.far_dates (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz);
INSERT INTO types.far_dates VALUES
  (1, '10000-01-01', '10000-01-01 00:00:00', '10000-01-01 00:00:00+00'),
  (2, '12000-06-15', '12000-06-15 12:34:56.789012', '12000-06-15 12:34:56.789012+00'),
  (3, '0001-12-31 BC', '0001-12-31 23:59:59.999999 BC', '0001-12-31 23:59:59.999999+00 BC'),
  (4, '0044-03-15 BC', '0044-03-15 12:00:00 BC', '0044-03-15 12:00:00+00 BC'),
  (5, '4713-01-01 BC', '4713-01-01 00:00:00 BC', '4713-01-01 00:00:00+00 BC');

-- What no lake holds: null and a dead letter, under the default policy.
CREATE TABLE types.infinite_dates (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz);
INSERT INTO types.infinite_dates VALUES
  (1, 'infinity', 'infinity', 'infinity'), (2, '-infinity', '-infinity', '-infinity'),
  (3, '2026-01-01', 'infinity', '2026-01-01 00:00+00');

CREATE TABLE types.times (id int PRIMARY KEY, t time, tz timetz, t3 time(3), i interval, iy interval year to month);
INSERT INTO types.times VALUES
  (1, '00:00:00', '00:00:00+00', '00:00:00', '0', '0'),
  (2, '23:59:59.999999', '23:59:59.999999-15:59', '23:59:59.9996', '1 year 2 months 3 days 04:05:06.789', '14 months'),
  (3, '24:00:00', '24:00:00+15:59:59', '12:34:56.789', '-1 year -2 months +3 days -04:05:06.000001', '-14 months'),
  (4, '12:00:00.1', '12:00:00+05:30', '12:00', '1 mon -1 day', '1 year'),
  (5, NULL, NULL, NULL, NULL, NULL);

-- Text and bytes -----------------------------------------------------------------------------------------

CREATE TABLE types.texts (id int PRIMARY KEY, t text, v varchar(20), c char(8), n name, one "char", ci citext);
INSERT INTO types.texts VALUES
  (1, '', '', '', '', '', ''),
  (2, 'plain', 'plain', 'plain', 'plain', 'p', 'CaSe'),
  (3, E'tab\t newline\n return\r quote\' double" backslash\\ ctrl\x01\x1f del\x7f', E'a\tb\nc\\d', E'a\\b', 'n"n', '"', '\N'),
  (4, '日本語 Ελληνικά العربية 🦀 ' || U&'\+01F600' || U&'e\0301', 'naïve 🦀', 'é', 'ñame', NULL, 'ÀÉ'),
  (5, 'NULL', 'null', '\N', '{}', ',', '""'),
  (6, '  leading and trailing  ', '  v  ', '  c  ', '  n  ', ' ', '  '),
  (7, repeat('long ', 20000), NULL, NULL, NULL, NULL, NULL),
  (8, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE types.binaries (id int PRIMARY KEY, b bytea);
INSERT INTO types.binaries VALUES
  (1, ''), (2, '\x00'), (3, '\x00ff5c2722'), (4, decode(repeat('deadbeef', 10000), 'hex')), (5, NULL), (6, 'text \\ here');

CREATE TYPE types.mood AS ENUM ('sad', 'ok', 'very happy', 'it''s "odd", {really}');
CREATE TYPE types.pair AS (a int, b text);
CREATE TYPE types.nested AS (p types.pair, tags text[]);
CREATE TABLE types.others (
  id int PRIMARY KEY, e types.mood, u uuid, j json, jb jsonb, p types.pair, ne types.nested, r int4range, mr tstzrange, h hstore,
  ip inet, net cidr, mac macaddr, b bit(5), vb bit varying(9), m money, ts tsvector, q tsquery, pt point, pg polygon, jp jsonpath, l pg_lsn, re regclass);
INSERT INTO types.others VALUES
  (1, 'sad', '00000000-0000-0000-0000-000000000000', '{}', '{}', (1, 'x'), ((1, 'x'), '{a,b}'), '[1,5)', '[2026-01-01 00:00+00,2026-02-01 00:00+00)', 'a=>1',
   '10.0.0.1', '10.0.0.0/8', '08:00:2b:01:02:03', B'10101', B'', 12.34, 'a fat cat', 'fat & cat', '(1,2)', '((0,0),(1,1),(1,0))', '$.a[*] ? (@ > 1)', '16/B374D848', 'pg_class'),
  (2, 'it''s "odd", {really}', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '{ "spaces" :  1,  "dup": 1, "dup": 2 }', '{"dup": 2, "deep": [1, null, {"é": "🦀\n"}]}',
   (NULL, 'a "quoted", (text)'), (NULL, '{NULL,"x y","q\"q"}'), 'empty', '(,)', 'k=>NULL, "q\""=>"v"',
   '2001:db8::1/64', '::/0', 'ff:ff:ff:ff:ff:ff', B'00000', B'110', -12345678.9, '''it''''s'':1A', '!a | b', '(-1e-300,1e300)', '((0.1,0.2),(3,4))', 'lax $', '0/0', 'types.others'),
  (3, 'very happy', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'null', 'null', (NULL, NULL), (NULL, NULL), '(,5)', 'empty', '',
   '192.168.0.1/24', '192.168.0.0/24', NULL, NULL, NULL, NULL, '', NULL, NULL, NULL, NULL, NULL, NULL),
  (4, NULL, NULL, '"scalar"', '12345678901234567890.123456789', NULL, NULL, NULL, NULL, NULL, '::1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
  (5, 'ok', NULL, '[1e400]', '[]', (-2147483648, ''), ((2, NULL), '{}'), '[-5,5]', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- Domains: their base type, through any number of domains, with the base's own modifier.
CREATE DOMAIN types.price AS numeric(12,3) CHECK (VALUE >= 0);
CREATE DOMAIN types.net_price AS types.price;
CREATE DOMAIN types.email AS text;
CREATE DOMAIN types.scores AS int[];
CREATE DOMAIN types.day AS date;
CREATE TABLE types.domains (id int PRIMARY KEY, p types.price, n types.net_price, e types.email, s types.scores, pa types.price[], d types.day, da types.day[]);
INSERT INTO types.domains VALUES
  (1, 1.5, 999999999.999, 'a@b.c', '{1,2,NULL}', '{1.5,NULL,0}', '2026-11-21', '{2026-11-21,NULL,0044-03-15 BC}'),
  (2, 0, 0, '', '{}', '{}', '0001-01-01', '{}'),
  (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- Arrays and vectors -------------------------------------------------------------------------------------

CREATE TABLE types.arrays (
  id int PRIMARY KEY, ba bool[], i2 int2[], i4 int4[], i8 int8[], oa oid[], f4 float4[], f8 float8[], n numeric(10,2)[], nu numeric[],
  t text[], v varchar(5)[], c char(4)[], by bytea[], d date[], ts timestamp[], tz timestamptz[], u uuid[], jb jsonb[], e types.mood[], bx box[], pa types.pair[], ip inet[], iv interval[]);
INSERT INTO types.arrays VALUES
  (1, '{t,f,NULL}', '{-32768,32767,NULL}', '{-2147483648,2147483647,NULL}', '{-9223372036854775808,9223372036854775807,NULL}', '{0,4294967295}',
   '{0.1,NaN,Infinity,-Infinity,-0,NULL}', '{0.1,NaN,Infinity,-Infinity,-0,5e-324,NULL}', '{1.50,-99999999.99,NULL}', '{1.10,NaN,123456789012345678901234567890123456789012345,NULL}',
   ARRAY['a', '', NULL, 'NULL', 'null', 'with, comma', 'with "quotes"', 'back\slash', '{braces}', E'new\nline', ' space ', '日本語 🦀'], '{a,"b c"}', '{a,"b,c"}',
   ARRAY['\x'::bytea, '\x00ff', NULL, '\x5c22'], '{1970-01-01,1582-10-04,9999-12-31,NULL}', '{"1970-01-01 00:00:00.000001",NULL}', '{"2026-11-21 09:40:12.5+02",NULL}',
   '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,NULL}', ARRAY['{"a": [1, "x, y"]}'::jsonb, 'null', NULL], ARRAY['sad', 'it''s "odd", {really}', NULL]::types.mood[],
   '{(1,1),(0,0);(3,4),(1,2)}', ARRAY[(1, 'x'), (NULL, 'a "b", c'), NULL]::types.pair[], '{10.0.0.1,2001:db8::/32}', ARRAY['1 day', '-1 mon'::interval]),
  (2, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'),
  (3, '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}'),
  (4, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- What array<T> cannot say: several dimensions, a lower bound other than one, an element that its own type in
-- Delta has no place for. The whole array is null, with a dead letter.
CREATE TABLE types.odd_arrays (id int PRIMARY KEY, i4 int4[], t text[], d date[], tz timestamptz[], n numeric(10,2)[]);
INSERT INTO types.odd_arrays VALUES
  (1, '{{1,2},{3,4}}', '{{a,b}}', '{2026-01-01,infinity}', '{-infinity}', '{1.00,NaN}'),
  (2, '[2:3]={1,2}', '[0:1]={a,b}', '{{2026-01-01}}', '{{"2026-01-01 00:00+00"}}', '{{1}}'),
  (3, '{1}', '{ok}', '{2026-01-01}', '{NULL,"2026-01-01 00:00+00"}', '{NULL,1}'),
  (4, '[1:2]={1,2}', '[-1:-1]={x}', NULL, '{}', '{}');

CREATE TABLE types.vectors (id int PRIMARY KEY, v vector(3), any_length vector);
INSERT INTO types.vectors VALUES
  (1, '[1,2,3]', '[0.5]'), (2, '[-1.5,3.4028235e38,1e-45]', '[1,2,3,4,5]'), (3, '[0,0,0]', NULL), (4, NULL, '[0.1,0.2]');

-- Names --------------------------------------------------------------------------------------------------

CREATE TABLE names."Order Lines" ("Id" int PRIMARY KEY, "unit price" numeric(10,2), "a,b" text, "a;b" text, "{x}" text, "(y)" text, "e=mc" text, "tab	tab" text,
  "quote""d" text, "it's" text, "back`tick" text, "größe" text, "日本" text, "select" text, "dot.ted" text, "back\slash" text, "per%cent" text);
INSERT INTO names."Order Lines" VALUES
  (1, 9.99, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o'), (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE names.colliding_columns (id int PRIMARY KEY, name text, "Name" text, "NAME" int, "a b" text, a_b text);
INSERT INTO names.colliding_columns VALUES (1, 'lower', 'Title', 1, 'space', 'underscore');
CREATE TABLE names."größe/ü" (id int PRIMARY KEY, v text);
INSERT INTO names."größe/ü" VALUES (1, 'unicode');
CREATE TABLE names."a b" (id int PRIMARY KEY, v text);
INSERT INTO names."a b" VALUES (1, 'space');
CREATE TABLE "Sales (EU)"."Orders ""2026""" (id int PRIMARY KEY, v text);
INSERT INTO "Sales (EU)"."Orders ""2026""" VALUES (1, 'quoted');
CREATE TABLE public.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
INSERT INTO public.orders (v) VALUES ('public'), (NULL);

-- Tables whose folders would be the same: equal ignoring case, or once characters became `_`.
CREATE TABLE collisions.item (id int PRIMARY KEY, v text);
INSERT INTO collisions.item VALUES (1, 'lower');
CREATE TABLE collisions."Item" (id int PRIMARY KEY, v text);
INSERT INTO collisions."Item" VALUES (1, 'title');
CREATE TABLE collisions."a b" (id int PRIMARY KEY, v text);
INSERT INTO collisions."a b" VALUES (1, 'space');
CREATE TABLE collisions."a,b" (id int PRIMARY KEY, v text);
INSERT INTO collisions."a,b" VALUES (1, 'comma');

-- Shapes -------------------------------------------------------------------------------------------------

CREATE TABLE shapes.partitioned (id int, region text, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE shapes.partitioned_eu PARTITION OF shapes.partitioned FOR VALUES IN ('eu');
CREATE TABLE shapes.partitioned_rest PARTITION OF shapes.partitioned DEFAULT PARTITION BY HASH (id);
CREATE TABLE shapes.partitioned_rest_0 PARTITION OF shapes.partitioned_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE shapes.partitioned_rest_1 PARTITION OF shapes.partitioned_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO shapes.partitioned SELECT n, (ARRAY['eu', 'us', 'ap'])[1 + n % 3], 'v' || n FROM generate_series(1, 30) n;
CREATE TABLE shapes.composite_key (a text, b int, c uuid, v text, PRIMARY KEY (c, a, b));
INSERT INTO shapes.composite_key VALUES ('x', 1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'one'), ('x', 2, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'two'), ('', 1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', NULL);
CREATE TABLE shapes.inserts_only (a int, b text);
INSERT INTO shapes.inserts_only VALUES (1, 'twice'), (1, 'twice'), (NULL, NULL);
CREATE TABLE shapes.full_identity (a int, b text);
ALTER TABLE shapes.full_identity REPLICA IDENTITY FULL;
INSERT INTO shapes.full_identity VALUES (1, 'once'), (2, NULL);
CREATE TABLE shapes.index_identity (a int NOT NULL UNIQUE, b text);
ALTER TABLE shapes.index_identity REPLICA IDENTITY USING INDEX index_identity_a_key;
INSERT INTO shapes.index_identity VALUES (1, 'once'), (2, NULL);
CREATE TABLE shapes.dropped_column (id int PRIMARY KEY, gone text, kept text);
INSERT INTO shapes.dropped_column VALUES (1, 'x', 'kept');
ALTER TABLE shapes.dropped_column DROP COLUMN gone;
ALTER TABLE shapes.dropped_column ADD COLUMN added int DEFAULT 42;
INSERT INTO shapes.dropped_column VALUES (2, 'new', 7);
CREATE TABLE shapes.empty (id int PRIMARY KEY, v text);
CREATE TABLE shapes.text_key (id text PRIMARY KEY, v int);
INSERT INTO shapes.text_key VALUES ('', 1), ('a', 2), ('A', 3), ('日本 🦀', 4), ('a b', 5);
CREATE TABLE shapes.parent (id int PRIMARY KEY, v text);
INSERT INTO shapes.parent SELECT n, 'v' || n FROM generate_series(1, 10) n;
