"""The stream: WAL that is already written, read by `pg_recvlogical` and by Tidewater in turn.

Both begin at the same position of copies of one slot, ask pgoutput for the same publications with the same
options, over TCP on loopback. The clock starts when the server logs that the slot begins to decode. It stops
for `pg_recvlogical` when it ends, having received the last position, and for Tidewater when the last commit
is in the Delta log. The rate is row changes by that time; the ratio is of the two medians.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ten_columns
from measurement import Aim, Incomplete, Row, Section, mebibytes, median, significant, spread
from postgres import Postgres
from processes import ProcessorTime, Program
from tidewater import CaughtUp, Installation, StartingPoint

TITLE = "Stream"
RUNS = 3
ROWS_PER_TRANSACTION = 1000
# In tens of row changes: 100 changes a transaction.
TENS_PER_TRANSACTION = 10

METHOD = f"""\
The WAL is written first: inserts in transactions of {ROWS_PER_TRANSACTION} rows; the mixed load in transactions of
{TENS_PER_TRANSACTION * 10} row changes (60 inserts, 30 updates and 10 deletes of keys all over the table).
`pg_recvlogical -f /dev/null` and `tidewater run --until-caught-up` then read it in turn, {RUNS} times each, from
copies of one slot, with the same publications and options (protocol 2, streaming, messages, text). Counted from the
server's log line that decoding begins to the end of `pg_recvlogical`, and to the last commit in the Delta log.
After every run of ours DuckDB compares the lake with the source."""


@dataclass(frozen=True)
class Received:
    """One run of `pg_recvlogical`."""

    seconds: float
    walsender_processor_seconds: float


def measure_inserts(binary: Path, postgres: Postgres, place: Path, rows: int) -> Section:
    def write(table: str) -> int:
        postgres.fill(f"CALL insert_rows('{table}', 1, {rows}, {ROWS_PER_TRANSACTION})")
        return rows

    aim = Aim("≥ 0.95 of it", 0.95)
    return _measure(binary, postgres, place, "inserts", 0, write, f"stream, {rows:,} inserts", aim)


def measure_mixed(binary: Path, postgres: Postgres, place: Path, table_rows: int, changes: int) -> Section:
    batch = TENS_PER_TRANSACTION * 10

    def write(table: str) -> int:
        postgres.fill(f"CALL mix_all('{table}', {table_rows}, {changes // batch}, {TENS_PER_TRANSACTION})")
        return changes // batch * batch

    work = f"stream, {changes:,} changes 60/30/10 on {table_rows:,} rows"
    return _measure(binary, postgres, place, "mixed", table_rows, write, work, Aim("≥ 0.8 of it", 0.8))


def _measure(
    binary: Path,
    postgres: Postgres,
    place: Path,
    name: str,
    table_rows: int,
    write: Callable[[str], int],
    work: str,
    aim: Aim,
) -> Section:
    table = f"stream_{name}"
    ten_columns.create(postgres, table, table_rows)
    installation = Installation(binary, postgres, place, name, table)
    try:
        installation.catch_up()
        start = StartingPoint(installation)
        changes = write(table)
        end = postgres.end_of_wal()
        # Something behind the end, so that whoever waits for it hears of it at once.
        postgres.sql("SELECT pg_logical_emit_message(true, 'bench', 'end')")
        ours: list[CaughtUp] = []
        theirs: list[Received] = []
        for _ in range(RUNS):
            postgres.settle()
            theirs.append(_receive(postgres, place, installation.publications, start.slot, end))
            start.restore()
            postgres.settle()
            ours.append(installation.catch_up())
            if ours[-1].loads:
                raise Incomplete("the table was loaded anew instead of followed")
            installation.check()
        length = ten_columns.row_length(postgres, table)
    finally:
        installation.remove()
        postgres.sql(f"DROP TABLE {table}")
    return _section(work, changes, ours, theirs, aim, length)


def _receive(postgres: Postgres, place: Path, publications: str, kept: str, end: str) -> Received:
    slot = "bench_peer"
    postgres.copy_slot(kept, slot)
    logged = postgres.log_position()
    walsender = ProcessorTime()
    options = ["proto_version=2", f"publication_names={publications}", "streaming=on", "messages=true"]
    command = [postgres.binary("pg_recvlogical"), *postgres.client_arguments, "--slot", slot, "--start", "--no-loop"]
    command += ["--endpos", end, "--file", os.devnull]
    for option in options:
        command += ["--option", option]
    started = None

    def look() -> None:
        nonlocal started
        started = started or postgres.slot_started(logged, slot)
        walsender.look_at(started and started.pid)

    ended = Program(command, place / "pg_recvlogical.log").finish(meanwhile=look)
    started = started or postgres.slot_started(logged, slot)
    postgres.drop_slot(slot)
    if started is None:
        raise Incomplete("the server did not log that decoding began")
    return Received(ended.ended - started.at, walsender.seconds)


def _section(
    work: str,
    changes: int,
    ours: list[CaughtUp],
    theirs: list[Received],
    aim: Aim,
    length: float,
) -> Section:
    own = [changes / run.seconds for run in ours]
    peer = [changes / run.seconds for run in theirs]
    row = Row(
        work=work,
        ours=f"{significant(median(own))} changes/s",
        compared_with=f"pg_recvlogical to /dev/null: {significant(median(peer))} changes/s",
        ratio=median(own) / median(peer),
        aim=aim,
    )
    seconds = median([run.seconds for run in ours])
    daemon = median([run.process.processor_seconds for run in ours])
    walsender = median([run.walsender_processor_seconds for run in ours])
    alone = median([run.walsender_processor_seconds for run in theirs])
    memory = max(run.process.peak_memory for run in ours)
    busy = walsender / seconds
    bound = (
        "so the walsender, which decodes on one core, is what bounds it"
        if busy > 0.85
        else "so the walsender waited for us in between"
    )
    findings = [
        f"{work}: Tidewater {spread(own)} and pg_recvlogical {spread(peer)} changes/s in the single runs; rows of "
        f"{length:.0f} bytes of text.",
        f"In {seconds:.1f} s of ours the walsender used {walsender:.1f} s of processor time (beside pg_recvlogical "
        f"{alone:.1f} s), {bound}. The daemon used {daemon:.1f} s on all its threads, start and stop included, made "
        f"{ours[-1].versions} commits and was at most {mebibytes(memory)} resident.",
    ]
    return Section(TITLE, METHOD, [row], findings)
