-- Databases and roles of one cluster. `other` is how a client names the second database.
CREATE DATABASE conform;
CREATE DATABASE conform_copied TEMPLATE template0 STRATEGY file_copy ENCODING 'UTF8';
CREATE DATABASE conform_logged STRATEGY wal_log;
CREATE DATABASE conform;
SELECT datname, pg_encoding_to_char(encoding), datcollate, datlocprovider FROM pg_database WHERE datname LIKE 'conform%' ORDER BY 1;
\connect :other
SELECT current_database(), current_user;
CREATE TABLE here (id int PRIMARY KEY);
INSERT INTO here SELECT generate_series(1, 1000);
\connect :home
SELECT current_database(), to_regclass('here');
CREATE DATABASE conform_from TEMPLATE conform STRATEGY file_copy;
ALTER DATABASE conform_from RENAME TO conform_renamed;
ALTER DATABASE conform SET work_mem = '7MB';
\connect :other
SHOW work_mem;
SELECT count(*) FROM here;
\connect :home
DROP DATABASE conform_copied;
DROP DATABASE conform_logged WITH (FORCE);
DROP DATABASE conform_renamed;
DROP DATABASE nothing_like_it;
SELECT datname FROM pg_database WHERE datname LIKE 'conform%' ORDER BY 1;
CREATE TABLESPACE elsewhere LOCATION '/nonexistent';
CREATE ROLE guest LOGIN PASSWORD 'g' CONNECTION LIMIT 2 VALID UNTIL '2030-01-01';
GRANT pg_read_all_data TO guest;
ALTER ROLE guest SET statement_timeout = '1min';
ALTER ROLE guest SUPERUSER;
CREATE ROLE boss SUPERUSER;
SELECT rolname, rolsuper, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls FROM pg_roles WHERE rolname IN ('guest', 'shop') ORDER BY 1;
ALTER SYSTEM SET work_mem = '8MB';
SELECT pg_read_file('PG_VERSION');
SELECT pg_ls_dir('.');
LOAD 'auto_explain';
DROP ROLE guest;
