"""The first load, beside DuckDB's Postgres scanner writing Parquet and beside what the server can hand out at all."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import ten_columns
from measurement import Aim, Incomplete, Row, Section, mebibytes, median, significant, spread
from postgres import DATABASE, Postgres
from processes import Ended, Program
from tidewater import Installation

TITLE = "First load"
RUNS = 3
# As many as Tidewater takes on a machine of two cores; DuckDB gets as many threads.
SESSIONS = 2

METHOD = f"""\
Tidewater: from the server's log line of the load's CREATE_REPLICATION_SLOT, whose snapshot it copies, to version 0
in the Delta log; files of zstd level 1, the key index built alongside. DuckDB: `COPY (FROM postgres_scan) TO …
(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)` with {SESSIONS} threads and no order to keep, timed inside
the process, so its start-up does not count. The limit: {SESSIONS} psql processes, each with `COPY (SELECT … a range
of ctid) TO STDOUT (FORMAT binary)` of one half to /dev/null. In turn, {RUNS} times each; memory is the kernel's
peak of the whole process."""


def measure(binary: Path, postgres: Postgres, place: Path, rows: int) -> Section:
    table = ten_columns.ensure(postgres, rows)
    ours, duckdb, limit = [], [], []
    for run in range(RUNS):
        limit.append(_copy_out(postgres, place, table))
        duckdb.append(_duckdb(postgres, place, table))
        ours.append(_load(binary, postgres, place, f"load{run}", table))
    own = [rows / seconds for seconds, _ in ours]
    peer = [rows / seconds for seconds, _ in duckdb]
    out = [rows / seconds for seconds in limit]
    memory = max(ended.peak_memory for _, ended in ours)
    duckdb_memory = max(ended.peak_memory for _, ended in duckdb)
    work, figure = f"first load, {rows:,} rows", f"{significant(median(own))} rows/s"
    table_rows = [
        Row(
            work,
            figure,
            f"DuckDB postgres_scan to Parquet: {significant(median(peer))} rows/s",
            median(own) / median(peer),
            Aim("ahead of it", 1.0),
        ),
        Row(
            work,
            figure,
            f"limit, binary COPY to /dev/null: {significant(median(out))} rows/s",
            median(own) / median(out),
            Aim("≥ 0.5 of it", 0.5),
        ),
        Row(
            "first load, peak resident memory",
            mebibytes(memory),
            f"DuckDB: {mebibytes(duckdb_memory)}",
            memory / duckdb_memory,
            Aim("< 1 GiB", 2**30, at_least=False),
            judged=memory,
        ),
    ]
    findings = [
        f"Single runs, rows/s: Tidewater {spread(own)}; DuckDB {spread(peer)}; COPY {spread(out)}.",
        f"Processor time: Tidewater {_used(ours)}, DuckDB {_used(duckdb)}; "
        f"the {SESSIONS} Postgres backends come on top of both.",
    ]
    return Section(TITLE, METHOD, table_rows, findings)


def _used(runs: list[tuple[float, Ended]]) -> str:
    processor = median([ended.processor_seconds for _, ended in runs])
    seconds = median([seconds for seconds, _ in runs])
    return f"{processor:.1f} s of the {os.cpu_count()} × {seconds:.1f} s that the machine has in that time"


def _load(binary: Path, postgres: Postgres, place: Path, name: str, table: str) -> tuple[float, Ended]:
    installation = Installation(binary, postgres, place, name, table)
    try:
        postgres.settle()
        logged = postgres.log_position()
        ended = installation.catch_up().process
        started = postgres.logged(logged, f'CREATE_REPLICATION_SLOT "{installation.slot}_load"')
        if started is None:
            raise Incomplete("the server did not log the load's CREATE_REPLICATION_SLOT")
        installation.check()
        return installation.log.version(0).appeared - started.at, ended
    finally:
        installation.remove()


def _duckdb(postgres: Postgres, place: Path, table: str) -> tuple[float, Ended]:
    answer = place / "duckdb.json"
    target = place / "duckdb.parquet"
    postgres.settle()
    dsn = f"host=127.0.0.1 port={postgres.port} user=postgres dbname={DATABASE}"
    command = [sys.executable, Path(__file__).with_name("duckdb_scan.py"), dsn, table, target, str(SESSIONS), answer]
    ended = Program(command, place / "duckdb.log").finish()
    target.unlink()
    return json.loads(answer.read_text())["seconds"], ended


def _copy_out(postgres: Postgres, place: Path, table: str) -> float:
    postgres.settle()
    pages = postgres.value("SELECT pg_relation_size(%s) / current_setting('block_size')::integer", (table,))
    cuts = [pages * part // SESSIONS for part in range(SESSIONS + 1)]
    halves = []
    for first, behind in itertools.pairwise(cuts):
        half = f"SELECT * FROM {table} WHERE ctid >= '({first},0)' AND ctid < '({behind},0)'"
        query = f"COPY ({half}) TO STDOUT (FORMAT binary)"
        # The answer goes where psql's `-o` says; its messages go to the log.
        command = [postgres.binary("psql"), *postgres.client_arguments, "-X", "-q", "-o", "/dev/null", "-c", query]
        halves.append(Program(command, place / "copy.log"))
    ended = [program.finish() for program in halves]
    return max(program.ended for program in ended) - min(program.began for program in ended)
