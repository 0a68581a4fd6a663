"""Freshness: from a transaction's COMMIT to the moment at which a stock Delta reader has it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ten_columns
from measurement import Aim, Incomplete, Row, Section, mebibytes, percentile
from postgres import Postgres
from processes import Program, wait_for
from tidewater import Installation

TITLE = "Freshness"
CHANGES_PER_SECOND = 5000
TENS_PER_TRANSACTION = 5

HALF = Aim("≤ 0.7 s", 0.7, at_least=False)
MOST = Aim("≤ 1.5 s", 1.5, at_least=False)

METHOD = f"""\
{CHANGES_PER_SECOND // (TENS_PER_TRANSACTION * 10)} transactions a second of {TENS_PER_TRANSACTION * 10} row changes each (60 % inserts, 30 %
updates, 10 % deletes) against a running daemon with `flush: 1s`. The clock is read just before COMMIT is sent. A
reader process of its own (the `deltalake` package) follows the log every 10 ms with `update_incremental` and notes
when it has a version; the version's `txn` tells which transactions it holds. So the figures include the commit
itself, decoding, the wait for the flush, the Delta commit and the reader's polling."""


def measure(binary: Path, postgres: Postgres, place: Path, table_rows: int, seconds: int) -> Section:
    table = "freshness"
    ten_columns.create(postgres, table, table_rows)
    installation = Installation(binary, postgres, place, "fresh", table, flush="1s")
    try:
        with installation.running() as daemon:
            committed, seen = observe(postgres, place, installation, table_rows, seconds, CHANGES_PER_SECOND)
        installation.check()
        memory = daemon.wait().peak_memory
    finally:
        installation.remove()
        postgres.sql(f"DROP TABLE {table}")
    delays = delays_of(committed, seen)
    half, most = percentile(delays, 0.5), percentile(delays, 0.99)
    work = f"freshness, {CHANGES_PER_SECOND:,} row changes/s for {seconds} s"
    rows = [
        Row(f"{work}, p50", f"{half:.2f} s", "", aim=HALF, judged=half),
        Row(f"{work}, p99", f"{most:.2f} s", "", aim=MOST, judged=most),
    ]
    span = committed[-1][0] - committed[0][0]
    rate = len(committed) * TENS_PER_TRANSACTION * 10 / span
    findings = [
        f"{len(committed):,} transactions in {span:.1f} s ({rate:,.0f} row changes/s) became {len(seen)} versions; "
        f"the slowest took {max(delays):.2f} s. The daemon was at most {mebibytes(memory)} resident.",
        "A flush of 1 s alone makes a transaction wait half a second on average; the rest of p50 is the way through.",
    ]
    return Section(TITLE, METHOD, rows, findings)


def observe(
    postgres: Postgres,
    place: Path,
    installation: Installation,
    table_rows: int,
    seconds: int,
    changes_per_second: int,
) -> tuple[list[tuple[float, int]], list[dict]]:
    """What was committed, (clock at COMMIT, an LSN that only versions holding it are above), and what was seen."""
    sightings = place / "sightings"
    app_id = installation.log.version(0).app_id
    if app_id is None:
        raise Incomplete("the first version carries no txn")
    command = [sys.executable, Path(__file__).with_name("delta_follower.py"), installation.log.table, app_id, sightings]
    follower = Program(command, place / "follower.log")
    try:
        wait_for("the reader to be there", lambda: sightings.exists() or follower.poll() is not None, 30)
        per_second = changes_per_second // (TENS_PER_TRANSACTION * 10)
        committed = _write(postgres, installation.table, table_rows, seconds, per_second)

        def has_all() -> bool:
            if follower.poll() is not None:
                raise Incomplete(f"the reader ended\n{follower.tail()}")
            return any(sighting["position"] > committed[-1][1] for sighting in _sightings(sightings))

        wait_for("the reader to have the last transaction", has_all, 60)
    finally:
        follower.kill()
    return committed, _sightings(sightings)


def _write(postgres: Postgres, table: str, base: int, seconds: int, per_second: int) -> list[tuple[float, int]]:
    committed = []
    with postgres.connect(autocommit=False) as session:
        began = time.monotonic()
        for batch in range(seconds * per_second):
            # A transaction that is late does not make the next one late: the rate holds over the whole time.
            time.sleep(max(0.0, began + batch / per_second - time.monotonic()))
            session.execute("SELECT mix(%s::regclass, %s, %s, %s)", (table, base, batch, TENS_PER_TRANSACTION))
            # Everything of this transaction but its commit is below; with one writer nothing else can end in between.
            position = session.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()[0]
            clock = time.time()
            session.commit()
            committed.append((clock, int(position)))
    return committed


def _sightings(path: Path) -> list[dict]:
    # The last line may be half written.
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def delays_of(committed: list[tuple[float, int]], seen: list[dict]) -> list[float]:
    """How long each transaction took until a reader had it."""
    delays, at = [], 0
    for clock, position in committed:
        while seen[at]["position"] <= position:
            at += 1
        delays.append(seen[at]["at"] - clock)
    return delays
