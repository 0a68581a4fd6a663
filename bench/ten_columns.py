"""The table that everything is measured on: ten columns, about 130 bytes of text a row.

Row `i` is a function of `i` alone, so any part of it can be made anywhere, in bulk and inside the server.
"""

from __future__ import annotations

from postgres import Postgres

COLUMNS = """
    id bigint, customer integer, status text, amount numeric(12,2), quantity integer,
    weight double precision, ordered_at timestamptz, due date, country text, note text
"""

# The md5 keeps a fourth of the row incompressible, as real identifiers and notes are.
ROW = """
    i, (i * 7919 % 100000)::integer, (ARRAY['new','paid','shipped','returned'])[1 + i % 4],
    (i * 31 % 1000000)::numeric / 100, (i % 50)::integer, (i % 100000) / 7.0::double precision,
    timestamptz '2026-01-01 00:00:00Z' + i % 10000000 * interval '1 second', date '2026-01-01' + (i % 365)::integer,
    (ARRAY['DE','FR','NL','SE','PT','PL','IT','ES'])[1 + i % 8], 'customer remark: ' || md5(i::text)
"""

# Inside `format`, where a percent sign is doubled.
QUOTED_ROW = ROW.replace("%", "%%")

PROCEDURES = f"""
CREATE OR REPLACE PROCEDURE insert_rows(tab regclass, first bigint, total bigint, per_transaction bigint)
LANGUAGE plpgsql AS $$
BEGIN
    FOR start IN first .. first + total - 1 BY per_transaction LOOP
        EXECUTE format($q$INSERT INTO %s SELECT {QUOTED_ROW} FROM generate_series($1, $2) i$q$, tab)
            USING start, least(start + per_transaction, first + total) - 1;
        COMMIT;
    END LOOP;
END $$;

-- All in one transaction, with a savepoint before each part; every tenth part is rolled back and written again.
CREATE OR REPLACE PROCEDURE insert_at_once(tab regclass, first bigint, total bigint, per_savepoint bigint)
LANGUAGE plpgsql AS $$
DECLARE
    part text := format($q$INSERT INTO %s SELECT {QUOTED_ROW} FROM generate_series($1, $2) i$q$, tab);
    last bigint;
    number bigint := 0;
BEGIN
    FOR start IN first .. first + total - 1 BY per_savepoint LOOP
        last := least(start + per_savepoint, first + total) - 1;
        number := number + 1;
        BEGIN
            EXECUTE part USING start, last;
            IF number % 10 = 0 THEN
                RAISE SQLSTATE 'TW001';
            END IF;
        EXCEPTION WHEN SQLSTATE 'TW001' THEN
            EXECUTE part USING start, last;
        END;
    END LOOP;
END $$;

-- Batch `batch`: 60 inserts behind the `base` rows, 30 updates and 10 deletes among them. The multipliers are prime, so
-- that keys lie all over the table; updates and deletes never meet, and no key is deleted twice.
CREATE OR REPLACE FUNCTION mix(tab regclass, base bigint, batch bigint, tens integer)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format($q$INSERT INTO %s SELECT {QUOTED_ROW} FROM generate_series($1, $2) i$q$, tab)
        USING base + batch * 6 * tens + 1, base + (batch + 1) * 6 * tens;
    EXECUTE format($q$UPDATE %s SET quantity = quantity + 1, status = 'changed' WHERE id = ANY
        (ARRAY(SELECT i * 7368787 %% ($3 / 10) * 10 + 1 + i %% 9 FROM generate_series($1, $2) i))$q$, tab)
        USING batch * 3 * tens, (batch + 1) * 3 * tens - 1, base;
    EXECUTE format($q$DELETE FROM %s WHERE id = ANY
        (ARRAY(SELECT i * 7368787 %% ($3 / 10) * 10 + 10 FROM generate_series($1, $2) i))$q$, tab)
        USING batch * tens, (batch + 1) * tens - 1, base;
END $$;

CREATE OR REPLACE PROCEDURE mix_all(tab regclass, base bigint, batches bigint, tens integer)
LANGUAGE plpgsql AS $$
BEGIN
    FOR batch IN 0 .. batches - 1 LOOP
        PERFORM mix(tab, base, batch, tens);
        COMMIT;
    END LOOP;
END $$;
"""


def create(postgres: Postgres, table: str, rows: int) -> None:
    """A table of so many rows, as a settled one would be: vacuumed, analysed, on disk."""
    with postgres.connect() as session:
        session.execute("SET synchronous_commit = off")
        session.execute(PROCEDURES)
        session.execute(f"CREATE TABLE {table} ({COLUMNS})")
        if rows:
            session.execute(f"INSERT INTO {table} SELECT {ROW} FROM generate_series(1::bigint, {rows}) i")
        session.execute(f"ALTER TABLE {table} ADD PRIMARY KEY (id)")
        session.execute(f"VACUUM (FREEZE, ANALYZE) {table}")
    postgres.settle()


def ensure(postgres: Postgres, rows: int) -> str:
    """The name of a table with so many rows, made when first asked for. Rows may be updated, not added or deleted."""
    table = f"rows_{rows}"
    if not postgres.value("SELECT to_regclass(%s) IS NOT NULL", (table,)):
        create(postgres, table, rows)
    return table


def row_length(postgres: Postgres, table: str) -> float:
    """Bytes of text in an average row, without separators."""
    texts = "id, customer, status, amount, quantity, weight, ordered_at, due, country, note"
    return float(postgres.value(f"SELECT avg(length(concat({texts}))) FROM (SELECT * FROM {table} LIMIT 10000) t"))


def figures(postgres: Postgres, table: str) -> tuple[int, int, int]:
    """A short summary that two copies of the table must share."""
    return postgres.sql(
        f"SELECT count(*), coalesce(sum(id), 0)::bigint, coalesce(sum(quantity), 0)::bigint FROM {table}"
    )[0]
