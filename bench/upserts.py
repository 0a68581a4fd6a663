"""Ten thousand updates of keys all over a large table, beside delta-rs' MERGE of the same rows."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet

import ten_columns
from delta_log import Version
from duckdb_extension import load_extension
from measurement import Aim, Incomplete, Row, Section, mebibytes, median, spread
from postgres import DATABASE, Postgres
from processes import Program
from tidewater import Installation

TITLE = "Upserts"
RUNS = 3
UPDATES = 10_000
# Short, so that the wait for it is a small part of what is measured.
FLUSH = "100ms"
SEED = 20

METHOD = f"""\
One transaction updates {UPDATES:,} rows at random keys while the daemon runs with `flush: {FLUSH}`; counted from
just before COMMIT is sent to the version's file in the Delta log, so the wait for the flush, decoding, key
look-ups, the data file, the deletion vectors and the commit are in it. delta-rs: a Delta table of the same rows
(written by DuckDB, files of about 128 MiB), then `DeltaTable.merge(…).when_matched_update_all()` with {UPDATES:,}
rows in memory, timed around `execute()` in a process of its own. In turn, {RUNS} times each, a different set of
keys every time. After every run the version is read: a data file that is removed and does not come back under the
same name with a deletion vector would count as rewritten."""


@dataclass(frozen=True)
class Upsert:
    """One transaction's updates in the lake."""

    seconds: float
    rewritten: int


@dataclass(frozen=True)
class Merge:
    """One MERGE."""

    seconds: float
    peak_memory: int


@dataclass(frozen=True)
class AtSize:
    """All runs on a table of one size."""

    rows: int
    ours: list[Upsert]
    merges: list[Merge]
    peak_memory: int
    data_bytes: int


def measure(binary: Path, postgres: Postgres, place: Path, sizes: list[int]) -> Section:
    measured = [_at_size(binary, postgres, place, rows) for rows in sizes]
    rows, findings = [], []
    for at in measured:
        own, peer = [run.seconds for run in at.ours], [run.seconds for run in at.merges]
        memory = max(run.peak_memory for run in at.merges)
        rewritten = sum(run.rewritten for run in at.ours)
        work = f"{UPDATES:,} random updates in {at.rows:,} rows"
        rows.append(
            Row(
                work,
                f"{median(own):.2f} s",
                f"delta-rs MERGE: {median(peer):.2f} s",
                median(peer) / median(own),
                # A MERGE rewrites what it touches, so the smaller the table the closer it comes: the aim is for the large one.
                Aim("≥ 10 times faster", 10.0) if at is measured[-1] else None,
            )
        )
        rows.append(
            Row(
                f"{work}, data files rewritten",
                str(rewritten),
                "",
                aim=Aim("0", 0, at_least=False),
                judged=rewritten,
            )
        )
        rows.append(
            Row(
                f"{work}, peak resident memory",
                mebibytes(at.peak_memory),
                f"delta-rs MERGE: {mebibytes(memory)}",
                at.peak_memory / memory,
                Aim("< 1 GiB", 2**30, at_least=False),
                judged=at.peak_memory,
            )
        )
        findings.append(
            f"{at.rows:,} rows ({mebibytes(at.data_bytes)} of data files): Tidewater {spread(own)} s, delta-rs "
            f"{spread(peer)} s in the single runs. The daemon's peak includes the table's first load."
        )
    small, large = measured[0], measured[-1]
    if small is not large:
        cost, before = median([run.seconds for run in large.ours]), median([run.seconds for run in small.ours])
        rows.append(
            Row(
                f"the same, {large.rows:,} rows against {small.rows:,}",
                f"{cost:.2f} s",
                f"{before:.2f} s",
                cost / before,
                Aim("≤ 1.25, the same cost", 1.25, at_least=False),
            )
        )
    return Section(TITLE, METHOD, rows, findings)


def _at_size(binary: Path, postgres: Postgres, place: Path, rows: int) -> AtSize:
    table = ten_columns.ensure(postgres, rows)
    peer = _peer_table(postgres, place, table)
    keys = random.Random(SEED)
    installation = Installation(binary, postgres, place, f"upserts{rows}", table, flush=FLUSH)
    try:
        ours, merges = [], []
        with installation.running() as daemon:
            for run in range(RUNS):
                chosen = keys.sample(range(1, rows + 1), UPDATES)
                merges.append(_merge(place, peer, chosen))
                ours.append(_update(postgres, installation, chosen, run))
        installation.check()
        size = sum(path.stat().st_size for path in installation.log.table.rglob("*.parquet"))
        return AtSize(rows, ours, merges, daemon.wait().peak_memory, size)
    finally:
        installation.remove()
        shutil.rmtree(peer, ignore_errors=True)


def _update(postgres: Postgres, installation: Installation, keys: list[int], run: int) -> Upsert:
    before = installation.log.last()
    with postgres.connect(autocommit=False) as session:
        change = f"quantity = quantity + 1, note = 'changed in run {run}'"
        session.execute(f"UPDATE {installation.table} SET {change} WHERE id = ANY(%s)", (keys,))
        clock = time.time()
        session.commit()
    version: Version = installation.log.version(installation.log.next_of_stream(before, 120))
    if version.rows_written != UPDATES:
        raise Incomplete(f"the version has {version.rows_written} new rows instead of {UPDATES}")
    return Upsert(version.appeared - clock, len(version.rewritten))


def _peer_table(postgres: Postgres, place: Path, table: str) -> Path:
    """The same rows as a Delta table that delta-rs may write."""
    folder = place / f"merge_{table}"
    dsn = f"host=127.0.0.1 port={postgres.port} user=postgres dbname={DATABASE}"
    command = [sys.executable, Path(__file__).with_name("merge_peer.py"), "create", dsn, table, folder]
    Program(command, place / "merge.log").finish()
    return folder


def _merge(place: Path, peer: Path, keys: list[int]) -> Merge:
    changes, answer = place / "changes.parquet", place / "merge.json"
    _write_changes(peer, keys, changes)
    command = [sys.executable, Path(__file__).with_name("merge_peer.py"), "merge", peer, changes, answer]
    ended = Program(command, place / "merge.log").finish()
    done = json.loads(answer.read_text())
    if done["updated"] != UPDATES:
        raise Incomplete(f"delta-rs updated {done['updated']} rows instead of {UPDATES}")
    return Merge(done["seconds"], ended.peak_memory)


def _write_changes(peer: Path, keys: list[int], target: Path) -> None:
    """What MERGE is given: the rows as they are, two columns changed. Not in its process, whose memory is measured."""
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as session:
        load_extension(session, "delta")
        rows = session.execute(
            "SELECT * REPLACE (quantity + 1 AS quantity, 'changed' AS note) FROM delta_scan(?) "
            "WHERE id IN (SELECT unnest(?))",
            [str(peer), keys],
        ).to_arrow_table()
    pyarrow.parquet.write_table(rows, target)
