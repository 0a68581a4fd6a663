"""Serving a Delta table from Postgres: the first load, changes, freshness, and lookups while changes are applied."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow
import pyarrow.compute
from deltalake import DeltaTable, write_deltalake

import ten_columns
from measurement import Aim, Incomplete, Row, Section, median, percentile, significant, spread
from postgres import DATABASE, Postgres, free_port
from processes import Program, wait_for

TITLE = "Tables served from the lake"
RUNS = 3
# One version of the incremental measurement changes so many rows at a time, as a large batch job does.
BATCH = 100_000
# What a stream of small versions looks like, for freshness and lookups.
SMALL_BATCH = 500
# What an application asks for while freshness is measured; as many as one session can are asked for beside rewrites.
LOOKUPS_PER_SECOND = 1_000

METHOD = f"""\
The Delta table is written by the `deltalake` package from the ten-column table. First load: `tidewater run
--until-caught-up` into a table that is not there, as the process's whole time; beside it psql's `\\copy` of the same
rows (CSV) into a table with the same primary key, also as the process's time; {RUNS} times each in turn. Changes:
one version of {BATCH:,} rows (60 % updated, 30 % inserted, 10 % deleted, by MERGE), from the start of
`run --until-caught-up` to its end, start-up included. The package copies on write: each of these versions is a file
of all rows in place of another, and what changed is found by reading both. Freshness: a daemon in `mode: continuous`
follows versions of {SMALL_BATCH} rows, one every half second if the writer is as fast; the clock is read when the
writer's commit has returned, and a session polls `tidewater.served_tables` every 5 ms. First versions that append,
beside {LOOKUPS_PER_SECOND:,} lookups a second; then upserts by MERGE, of which each rewrites the whole table on the
same two cores, beside as many lookups as one session can make. Lookups are of random keys by the primary key."""


def measure(binary: Path, postgres: Postgres, place: Path, rows: int, seconds: int) -> Section:
    serving = Serving(binary, postgres, place, rows)
    try:
        loads = serving.first_loads()
        changes = serving.changes()
        appended = serving.freshness(seconds, serving.append, LOOKUPS_PER_SECOND)
        rewritten = serving.freshness(seconds, lambda: serving.merge(SMALL_BATCH), None)
    finally:
        serving.remove()
    own = [rows / took for took, _ in loads]
    peer = [rows / took for _, took in loads]
    applied = [BATCH / took for took in changes]
    table_rows = [
        Row(
            f"served table, first load, {rows:,} rows",
            f"{significant(median(own))} rows/s",
            f"psql \\copy: {significant(median(peer))} rows/s",
            median(own) / median(peer),
            Aim("≥ 0.8 of it", 0.8),
        ),
        Row(
            f"served table, {BATCH:,} changes in one version",
            f"{significant(median(applied))} rows/s",
            "",
            aim=Aim("≥ 50,000 rows/s", 50_000),
            judged=median(applied),
        ),
        appended.row("rows appended", 0.5, Aim("≤ 1 s", 1.0, at_least=False)),
        appended.row("rows appended", 0.99, Aim("≤ 2 s", 2.0, at_least=False)),
        rewritten.row("table rewritten", 0.5, None),
        rewritten.row("table rewritten", 0.99, None),
        Row(
            "lookups by key while changes are applied",
            f"{significant(len(rewritten.lookups) / sum(rewritten.lookups))}/s",
            f"p99 {percentile(rewritten.lookups, 0.99) * 1000:.2f} ms",
        ),
    ]
    findings = [
        f"Single runs, rows/s: first load {spread(own)}; \\copy {spread(peer)}; changes {spread(applied)}.",
        f"Appended: {appended.told()}. A lookup took {percentile(appended.lookups, 0.99) * 1000:.2f} ms at p99. The "
        "daemon asks for the next version after 0.2 s, and more and more seldom up to a second while there is none.",
        f"Rewritten: {rewritten.told()}.",
    ]
    return Section(TITLE, METHOD, table_rows, findings)


@dataclass(frozen=True)
class Followed:
    """Versions that a daemon followed, and the lookups meanwhile, in seconds."""

    delays: list[float]
    writes: list[float]
    lookups: list[float]

    def row(self, what: str, part: float, aim: Aim | None) -> Row:
        found = percentile(self.delays, part)
        name = f"served table, commit to visible, {what}, p{part * 100:.0f}"
        return Row(name, f"{found:.2f} s", "", aim=aim, judged=found)

    def told(self) -> str:
        return (
            f"{len(self.delays)} versions were followed, which the writer took {median(self.writes):.2f} s each to "
            f"commit (median); the slowest was visible after {max(self.delays):.2f} s"
        )


class Serving:
    """A Delta table, and an installation that serves it."""

    def __init__(self, binary: Path, postgres: Postgres, place: Path, rows: int) -> None:
        self._binary = binary
        self._postgres = postgres
        self._rows = rows
        self.place = place / "serving"
        self.place.mkdir()
        self._delta = self.place / "lake" / "gold" / "orders"
        self._rounds = 0
        source = ten_columns.ensure(postgres, rows)
        self._csv = self.place / "orders.csv"
        self._psql(f"\\copy {source} TO '{self._csv}' (FORMAT csv)")
        self._write_delta()

    def _psql(self, statement: str) -> float:
        """Seconds that psql took."""
        arguments = [*self._postgres.client_arguments, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]
        command = [self._postgres.binary("psql"), *arguments]
        return Program(command, self.place / "psql.log").finish(600).seconds

    def _write_delta(self) -> None:
        columns = {
            "id": "BIGINT", "customer": "INTEGER", "status": "VARCHAR", "amount": "DECIMAL(12,2)",
            "quantity": "INTEGER", "weight": "DOUBLE", "ordered_at": "TIMESTAMPTZ", "due": "DATE",
            "country": "VARCHAR", "note": "VARCHAR",
        }  # fmt: skip
        with duckdb.connect() as session:
            session.execute("SET TimeZone = 'UTC'")
            found = session.execute(
                "SELECT * FROM read_csv(?, header = false, columns = ?)", [str(self._csv), columns]
            )
            write_deltalake(self._delta, found.to_arrow_reader(1_000_000))

    def _configure(self, mode: str) -> Path:
        path = self.place / "tidewater.yaml"
        path.write_text(
            "version: 1\n"
            f"lake: {{uri: {self.place / 'lake'}}}\n"
            f"state_dir: {self.place / 'state'}\n"
            f'databases: {{{DATABASE}: {{url: "{self._postgres.url}"}}}}\n'
            f"to_postgres:\n  - {{table: gold.orders, database: {DATABASE}, into: serving.orders, mode: {mode}, "
            "primary_key: [id]}\n"
            f'listen: {{http: "127.0.0.1:{free_port()}"}}\n'
        )
        return path

    def _catch_up(self) -> float:
        command = [self._binary, "--config", self._configure("triggered"), "run", "--until-caught-up"]
        ended = Program(command, self.place / "tidewater.log", cwd=self.place).finish(600)
        if self._applied() != DeltaTable(self._delta).version():
            raise Incomplete("tidewater ended without having served the newest version")
        return ended.seconds

    def _applied(self) -> int | None:
        return self._postgres.value("SELECT max(version) FROM tidewater.served_tables")

    def first_loads(self) -> list[tuple[float, float]]:
        """Seconds of ours and of psql's, run by run."""
        found = []
        for _ in range(RUNS):
            self._postgres.sql("DROP SCHEMA IF EXISTS serving CASCADE")
            self._postgres.sql("DROP TABLE IF EXISTS copied")
            self._postgres.sql(f"CREATE TABLE copied ({ten_columns.COLUMNS}, PRIMARY KEY (id))")
            self._postgres.settle()
            copied = self._psql(f"\\copy copied FROM '{self._csv}' (FORMAT csv)")
            self._postgres.sql("DROP TABLE copied")
            self._postgres.settle()
            found.append((self._catch_up(), copied))
            self._check()
        return found

    def changes(self) -> list[float]:
        """Seconds that each version of many changes took."""
        found = []
        for _ in range(RUNS):
            self.merge(BATCH)
            self._postgres.settle()
            found.append(self._catch_up())
            self._check()
        return found

    def append(self) -> None:
        self._rounds += 1
        first = self._rows * 10 + self._rounds * SMALL_BATCH
        ids = pyarrow.array(range(first, first + SMALL_BATCH), pyarrow.int64())
        quantity = pyarrow.array([self._rounds] * SMALL_BATCH, pyarrow.int32())
        rows = pyarrow.table({"id": ids, "quantity": quantity, "note": pyarrow.array(["appended"] * SMALL_BATCH)})
        write_deltalake(self._delta, rows, mode="append", schema_mode="merge")

    def merge(self, rows: int) -> None:
        """60 % of the rows updated, 30 % new, 10 % deleted."""
        self._rounds += 1
        table = DeltaTable(self._delta)
        drawn = random.Random(self._rounds).sample(range(1, self._rows + 1), rows * 7 // 10)
        new = range(self._rows + self._rounds * rows, self._rows + self._rounds * rows + rows * 3 // 10)
        ids = pyarrow.array([*drawn, *new], pyarrow.int64())
        deleted = [False] * (rows * 6 // 10) + [True] * (rows // 10) + [False] * len(new)
        source = pyarrow.table({
            "id": ids,
            "quantity": pyarrow.array([self._rounds] * len(ids), pyarrow.int32()),
            "note": pyarrow.array([f"round {self._rounds} of {row}" for row in ids.to_pylist()]),
            "gone": pyarrow.array(deleted),
        })  # fmt: skip
        merge = table.merge(source, "t.id = s.id", source_alias="s", target_alias="t")
        merge = merge.when_matched_delete("s.gone").when_matched_update({"quantity": "s.quantity", "note": "s.note"})
        merge.when_not_matched_insert({"id": "s.id", "quantity": "s.quantity", "note": "s.note"}).execute()

    def freshness(self, seconds: int, write: Callable[[], None], lookups_per_second: int | None) -> Followed:
        committed: dict[int, float] = {}
        seen: dict[int, float] = {}
        writes: list[float] = []
        lookups: list[float] = []
        with self._running():
            stop = threading.Event()
            threads = [
                threading.Thread(target=self._watch, args=(stop, seen)),
                threading.Thread(target=self._look_up, args=(stop, lookups, lookups_per_second)),
            ]
            for thread in threads:
                thread.start()
            try:
                began = time.monotonic()
                for turn in range(seconds * 2):
                    time.sleep(max(0.0, began + turn / 2 - time.monotonic()))
                    started = time.monotonic()
                    write()
                    clock = time.time()
                    writes.append(time.monotonic() - started)
                    committed[DeltaTable(self._delta).version()] = clock
                last = max(committed)
                wait_for("the last version to be served", lambda: any(version >= last for version in seen), 60)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
        self._check()
        delays = [min(at for v, at in seen.items() if v >= version) - clock for version, clock in committed.items()]
        return Followed([max(0.0, delay) for delay in delays], writes, lookups)

    def _watch(self, stop: threading.Event, seen: dict[int, float]) -> None:
        with self._postgres.connect() as session:
            while not stop.is_set():
                version = session.execute("SELECT version FROM tidewater.served_tables").fetchone()[0]
                seen.setdefault(version, time.time())
                time.sleep(0.005)

    def _look_up(self, stop: threading.Event, lookups: list[float], per_second: int | None) -> None:
        drawn = random.Random(7)
        with self._postgres.connect() as session:
            while not stop.is_set():
                began = time.perf_counter()
                session.execute("SELECT * FROM serving.orders WHERE id = %s", (drawn.randint(1, self._rows),)).fetchall()
                lookups.append(time.perf_counter() - began)
                if per_second:
                    time.sleep(max(0.0, began + 1 / per_second - time.perf_counter()))

    @contextmanager
    def _running(self) -> Iterator[None]:
        command = [self._binary, "--config", self._configure("continuous"), "run"]
        daemon = Program(command, self.place / "tidewater.log", cwd=self.place)
        try:
            yield
        except BaseException:
            daemon.kill()
            raise
        if daemon.stop(signal.SIGTERM).status != 0:
            raise Incomplete(f"tidewater did not stop in order\n{daemon.tail()}")

    def _check(self) -> None:
        """Postgres holds what the lake holds; a fast wrong answer is no result."""
        found = DeltaTable(self._delta).to_pyarrow_dataset().to_table(columns=["id", "quantity"])
        total = pyarrow.compute.sum
        expected = (len(found), total(found["id"]).as_py(), total(found["quantity"]).as_py())
        with self._postgres.connect() as session:
            served = session.execute(
                "SELECT count(*), sum(id)::bigint, sum(quantity)::bigint FROM serving.orders"
            ).fetchone()
        if served != expected:
            raise Incomplete(f"served are count, sum(id), sum(quantity) {served}, the lake has {expected}")

    def remove(self) -> None:
        self._postgres.sql("DROP SCHEMA IF EXISTS serving, tidewater CASCADE")
        shutil.rmtree(self.place, ignore_errors=True)
