"""The judges, judged: before the comparison may call a mirror right, it has to find what is wrong."""

import json
import os
import shutil

import pytest

import reader_server
import reference_mirror
import source_sql
import type_map_compare

ENGINES = reader_server.ENGINES


@pytest.fixture(scope="session")
def source(cluster):
    cluster.create("type_map", "type_map.sql", "type_map_changes.sql")
    return cluster.dsn("type_map")


@pytest.fixture(scope="session")
def lake(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lake")
    reference_mirror.write(source, folder, "shop")
    return folder


def source_rows(source, schema, table):
    with source_sql.connect(source) as connection:
        columns = source_sql.columns(connection, schema, table)
        return columns, connection.execute(source_sql.rows_query(columns, schema, table)).fetchall()


def table_folder(lake, schema, table):
    return os.path.join(lake, "shop", source_sql.folder_name(schema), source_sql.folder_name(table))


def differences(source, lake, engine):
    lines = []
    figures = type_map_compare.compare(source, lake, "shop", [engine], say=lines.append)
    return figures, lines


def rewritten(source, lake, tmp_path, schema, table, change):
    """A copy of the lake in which one table's rows went through `change`."""
    copy = tmp_path / "lake"
    shutil.copytree(lake, copy)
    folder = table_folder(copy, schema, table)
    shutil.rmtree(folder)
    columns, rows = source_rows(source, schema, table)
    reference_mirror.write_table(folder, table, columns, change([list(row) for row in rows]))
    return copy


@pytest.mark.parametrize("engine", ENGINES)
def test_a_right_mirror_of_every_type_passes_in_every_reader(source, lake, engine):
    (passed, failed), lines = differences(source, lake, engine)
    assert failed == 0, "\n".join(lines)
    assert passed == 2 * len(type_map_compare.source_tables(source, []))


def test_one_wrong_cell_is_found_and_named(source, lake, tmp_path):
    def one_microsecond_late(rows):
        return [[*row[:2], str(int(row[2]) + 1), *row[3:]] if row[0] == "1002" else row for row in rows]

    wrong = rewritten(source, lake, tmp_path, "types", "dates", one_microsecond_late)
    (_, failed), lines = differences(source, wrong, "duckdb")
    assert failed == 1
    assert lines[0] == "DIFFERS types.dates, duckdb"
    assert lines[1].startswith("    key ('1002',), column ts: lake has '1795254012123457', source has")


def test_null_instead_of_an_empty_array_is_found(source, lake, tmp_path):
    def emptied(rows):
        return [[None if cell == "[]" else cell for cell in row] for row in rows]

    (_, failed), lines = differences(source, rewritten(source, lake, tmp_path, "types", "arrays", emptied), "polars")
    assert failed == 1
    assert any("lake has None, source has '[]'" in line for line in lines)


def test_a_row_that_is_there_twice_and_a_row_that_is_gone_are_found(source, lake, tmp_path):
    def doubled_and_gone(rows):
        return [rows[0], *rows[:-1]]

    for table in ("parent", "inserts_only"):
        wrong = rewritten(source, lake, tmp_path / table, "shapes", table, doubled_and_gone)
        (_, failed), lines = differences(source, wrong, "deltalake")
        assert failed == 1
        assert any("not in the source, 1 times" in line for line in lines)
        assert any("missing from the lake, 1 times" in line for line in lines)


def test_a_wider_type_than_the_contract_has_is_found_though_its_values_are_equal(source, lake, tmp_path):
    wrong = tmp_path / "lake"
    shutil.copytree(lake, wrong)
    log = os.path.join(table_folder(wrong, "types", "integers"), "_delta_log", f"{0:020}.json")
    with open(log, encoding="utf-8") as file:
        written = file.read()
    with open(log, "w", encoding="utf-8") as file:
        file.write(written.replace('\\"short\\"', '\\"long\\"'))
    (_, failed), lines = differences(source, wrong, "deltalake")
    assert failed >= 1
    assert "    column i2: lake has type long, expected short" in lines


def test_a_missing_mirror_is_a_difference(source, lake, tmp_path):
    wrong = tmp_path / "lake"
    shutil.copytree(lake, wrong)
    shutil.rmtree(table_folder(wrong, "types", "domains"))
    (_, failed), _ = differences(source, wrong, "duckdb")
    assert failed == 2


def test_postgres_and_every_reader_compute_the_same_checksum(source, lake, readers):
    for schema, table in type_map_compare.source_tables(source, ["collisions.*"]):
        wanted = readers.ask(op="source_checksum", dsn=source, schema=schema, table=table)
        # Spark takes a second or two for each, and the other schemas hold no type that `types` does not.
        for engine in ENGINES if schema == "types" else ENGINES[1:]:
            found = readers.ask(engine=engine, op="checksum", path=table_folder(lake, schema, table))
            assert "error" not in found, found
            assert (found["columns"], found["count"], found["checksum"]) == (
                wanted["columns"],
                wanted["count"],
                wanted["checksum"],
            ), f"{schema}.{table} in {engine}"


def test_a_checksum_tells_one_changed_cell_and_one_doubled_row(source, tmp_path, readers):
    columns, rows = source_rows(source, "types", "floats")
    doubled = [*rows, rows[0]]
    changed = [(*row[:2], "8000000000000000") if row[2] == "0000000000000000" else row for row in rows]
    figures = set()
    for name, variant in (("same", rows), ("doubled", doubled), ("changed", changed)):
        reference_mirror.write_table(tmp_path / name, "floats", columns, variant)
        figures.add(readers.ask(engine="deltalake", op="checksum", path=str(tmp_path / name))["checksum"])
    assert len(figures) == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_older_versions_are_read_as_they_were(tmp_path, readers, engine):
    import pyarrow
    from deltalake import write_deltalake

    for value in (1, 2, 3):
        write_deltalake(tmp_path / "t", pyarrow.table({"v": [value]}), mode="append")
    asked = [readers.ask(engine=engine, op="rows", path=str(tmp_path / "t"), version=v)["rows"] for v in (0, 1, None)]
    assert asked == [[["1"]], [["1"], ["2"]], [["1"], ["2"], ["3"]]]
    assert readers.ask(engine=engine, op="count", path=str(tmp_path / "t"), version=1)["count"] == 2
    history = readers.ask(engine=engine, op="versions", path=str(tmp_path / "t"))
    if engine == "duckdb":
        assert history["kind"] == "not_offered"
    else:
        assert [entry["version"] for entry in history["versions"]] == [2, 1, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_deletion_vectors_that_spark_wrote_are_honoured(tmp_path, engine):
    from engines.spark import session

    folder = str(tmp_path / "t")
    spark = session()
    spark.range(10).coalesce(1).write.format("delta").option("delta.enableDeletionVectors", "true").save(folder)
    spark.sql(f"DELETE FROM delta.`{folder}` WHERE id % 3 = 0")
    assert any(name.startswith("deletion_vector_") for name in os.listdir(folder))
    found = type_map_compare.ask(engine=engine, op="rows", path=folder)
    assert found["rows"] == [["1"], ["2"], ["4"], ["5"], ["7"], ["8"]]
    assert type_map_compare.ask(engine=engine, op="count", path=folder)["count"] == 6


def test_chosen_columns_come_in_the_order_asked_and_sorted(source, lake, readers):
    asked = {"columns": ["v", "id"], "order_by": ["v"]}
    wanted = readers.ask(op="source_rows", dsn=source, schema="shapes", table="text_key", **asked)
    assert [row[0] for row in wanted["rows"]] == ["2", "3", "4", "5"]
    for engine in ENGINES:
        found = readers.ask(engine=engine, op="rows", path=table_folder(lake, "shapes", "text_key"), **asked)
        assert found["rows"] == wanted["rows"]


def test_floats_are_shown_with_their_shortest_digits(source, readers):
    found = readers.ask(op="source_rows", dsn=source, schema="types", table="floats", columns=["id", "f4", "f8"])
    shown = {row[0]: row[1:] for row in found["rows"]}
    assert shown["2"] == ["-0.0", "-0.0"]
    assert shown["5"] == ["-Infinity", "-Infinity"]
    assert shown["9"] == ["0.1", "0.1"]
    assert shown["11"] == ["10000000000.0", "1e+23"]


def test_a_question_that_cannot_be_answered_is_answered_so_and_the_next_one_is_heard(lake, readers):
    path = table_folder(lake, "types", "floats")
    assert readers.send("not json")["kind"] == "bad_request"
    assert readers.send("[1]")["kind"] == "bad_request"
    assert readers.ask(op="rows", engine="excel", path=path)["kind"] == "bad_request"
    assert readers.ask(op="drop", engine="duckdb", path=path)["kind"] == "bad_request"
    assert readers.ask(op="rows", engine="duckdb", path=path, limit=3)["kind"] == "bad_request"
    assert readers.ask(op="count", engine="duckdb", path=str(lake / "nowhere"))["kind"] == "failed"
    assert readers.ask(op="count", engine="spark", path="s3://bucket/table")["kind"] == "not_offered"
    assert readers.ask(op="count", engine="duckdb", path=path)["count"] == 26


def test_one_column_that_a_reader_misses_does_not_hide_the_others(lake, monkeypatch):
    from engines import duckdb

    real = duckdb.batches

    def blind_to_timestamps(location, columns):
        if columns is None or "ts" in columns:
            raise OverflowError("a year beyond this reader")
        return real(location, columns)

    monkeypatch.setattr(duckdb, "batches", blind_to_timestamps)
    found = json.loads(
        json.dumps(type_map_compare.ask(engine="duckdb", op="rows", path=table_folder(lake, "types", "dates")))
    )
    assert found["unreadable"] == {"ts": "OverflowError: a year beyond this reader"}
    assert {row[2] for row in found["rows"]} == {reader_server.UNREADABLE}
    assert found["rows"][0][0] == "1"
