#!/usr/bin/env python
"""Compares every table of a Postgres database with its mirror in the lake, through every reader.

    .venv/bin/python tests/readers/type_map_compare.py --dsn "host=… dbname=shop" --lake ./lake --database shop

Made for the database of type_map.sql, but it knows nothing about it: any database can be judged. For each table
the Delta schema must be what the contract's type map says (names, order, types), and the rows that Spark, DuckDB,
Polars and delta-rs read must be the rows that Postgres has, cell for cell. Let the sync catch up first and change
nothing meanwhile.

Differing cells are printed, at most twenty a table and reader. One table in one reader is one check, and so is one
table's schema; the last line counts them (`N passed, N failed`). Exit code 1 when any failed.
"""

import argparse
import fnmatch
import json
import os
import sys
from collections import Counter

import reader_server
import source_sql

MOST_LINES_PER_TABLE = 20
LONGEST_CELL_CHARACTERS = 120

_TABLES = r"""
SELECT n.nspname, c.relname
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tidewater') AND n.nspname NOT LIKE 'pg\_%'
ORDER BY n.nspname, c.relname
"""


def source_tables(dsn, exclude):
    with source_sql.connect(dsn) as connection:
        found = connection.execute(_TABLES).fetchall()
    return [t for t in found if not any(fnmatch.fnmatchcase(".".join(t), glob) for glob in exclude)]


def mirror_folder(lake, database, schema, table):
    """Where a table lies: under the contract's name, or that name with a suffix when another has it already."""
    parent = os.path.join(lake, source_sql.folder_name(database), source_sql.folder_name(schema))
    plain = source_sql.folder_name(table)
    candidates = [os.path.join(parent, plain), os.path.join(parent, plain + source_sql.name_suffix(table))]
    for candidate in candidates:
        if os.path.isdir(os.path.join(candidate, "_delta_log")) and _is_mirror_of(candidate, table):
            return candidate
    return candidates[0]


def _is_mirror_of(folder, table):
    # The name in the metadata tells apart two tables that wanted one folder.
    from deltalake import DeltaTable

    name = DeltaTable(folder).metadata().configuration.get("tidewater.source_name", table)
    return name == table or name.endswith(f".{table}")


def ask(**request):
    """One request to the readers, without the pipe."""
    return reader_server.answer(json.dumps({"id": 0, **request}))


def schema_differences(dsn, schema, table, folder):
    with source_sql.connect(dsn) as connection:
        columns = source_sql.columns(connection, schema, table)
    wanted = [[column.lake_name, column.delta_type] for column in columns]
    found = ask(engine="deltalake", op="schema", path=folder)
    if "error" in found:
        return [found["error"]]
    lines = []
    if [name for name, _ in wanted] != [name for name, _ in found["columns"]]:
        lines.append(f"columns: lake has {[n for n, _ in found['columns']]}, expected {[n for n, _ in wanted]}")
    types = dict(map(tuple, found["columns"]))
    for name, kind in wanted:
        if name in types and types[name] != kind:
            lines.append(f"column {name}: lake has type {types[name]}, expected {kind}")
    return lines


def row_differences(expected, actual, key):
    """The lines that say how the lake's rows differ from the source's."""
    if "error" in actual:
        return [actual["error"]]
    lines = [f"column {name} cannot be read: {why}" for name, why in actual.get("unreadable", {}).items()]
    if expected["columns"] != actual["columns"]:
        return lines + [f"columns: lake has {actual['columns']}, source has {expected['columns']}"]
    if expected["rows"] == actual["rows"]:
        return lines
    names = expected["columns"]
    if not key:
        return lines + _unpaired(expected["rows"], actual["rows"])
    places = [names.index(name) for name in key]
    source, lake = _by_key(expected["rows"], places), _by_key(actual["rows"], places)
    for at in sorted(source.keys() | lake.keys()):
        # One row each, as it should be: say which cells differ. Otherwise whole rows are missing or too many.
        if len(source.get(at, [])) == 1 and len(lake.get(at, [])) == 1:
            for name, wanted, found in zip(names, source[at][0], lake[at][0]):
                if wanted != found:
                    lines.append(f"key {at}, column {name}: lake has {_shown(found)}, source has {_shown(wanted)}")
        else:
            lines += _unpaired(source.get(at, []), lake.get(at, []))
    return lines


def _by_key(rows, places):
    found = {}
    for row in rows:
        found.setdefault(tuple(str(row[place]) for place in places), []).append(row)
    return found


def _unpaired(source, lake):
    source, lake = Counter(map(tuple, source)), Counter(map(tuple, lake))
    missing = [f"missing from the lake, {n} times: {_shown(row)}" for row, n in (source - lake).items()]
    return missing + [f"not in the source, {n} times: {_shown(row)}" for row, n in (lake - source).items()]


def _shown(value):
    text = repr(value)
    return text if len(text) <= LONGEST_CELL_CHARACTERS else f"{text[:LONGEST_CELL_CHARACTERS]}… ({len(text)} characters)"


def compare(dsn, lake, database, engines, exclude=(), say=print):
    """Runs all checks; gives how many passed and how many failed."""
    passed = failed = 0

    def judge(what, lines):
        nonlocal passed, failed
        if not lines:
            passed += 1
            return
        failed += 1
        say(f"DIFFERS {what}")
        for line in lines[:MOST_LINES_PER_TABLE]:
            say(f"    {line}")
        if len(lines) > MOST_LINES_PER_TABLE:
            say(f"    … and {len(lines) - MOST_LINES_PER_TABLE} more")

    tables = source_tables(dsn, exclude)
    if not tables:
        # Nothing compared is nothing proved.
        judge("the source", ["it has no tables to compare"])
    for schema, table in tables:
        folder = mirror_folder(lake, database, schema, table)
        judge(f"{schema}.{table}, schema", schema_differences(dsn, schema, table, folder))
        with source_sql.connect(dsn) as connection:
            key = [column.lake_name for column in source_sql.columns(connection, schema, table) if column.key]
        expected = ask(op="source_rows", dsn=dsn, schema=schema, table=table)
        if "error" in expected:
            judge(f"{schema}.{table}, source", [expected["error"]])
            continue
        for engine in engines:
            actual = ask(engine=engine, op="rows", path=folder)
            judge(f"{schema}.{table}, {engine}", row_differences(expected, actual, key))
    return passed, failed


def main():
    arguments = argparse.ArgumentParser(description="Compare a Postgres database with its mirror in the lake.")
    arguments.add_argument("--dsn", required=True, help="libpq connection string of the source")
    arguments.add_argument("--lake", required=True, help="folder of the lake (lake.uri)")
    arguments.add_argument("--database", required=True, help="the database's name in tidewater.yaml")
    arguments.add_argument("--engines", default=",".join(reader_server.ENGINES), help="comma-separated")
    arguments.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="schema.table to leave out")
    given = arguments.parse_args()
    engines = given.engines.split(",")
    unknown = [engine for engine in engines if engine not in reader_server.ENGINES]
    if unknown:
        arguments.error(f"no reader is called {unknown[0]!r}: expected {', '.join(reader_server.ENGINES)}")
    passed, failed = compare(given.dsn, os.path.abspath(given.lake), given.database, engines, given.exclude)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    # Alarms end what takes too long, as in the server.
    reader_server.install_alarm()
    sys.exit(main())
