"""Whether a commit costs more the more commits a table has behind it."""

from __future__ import annotations

import time
from pathlib import Path

import ten_columns
from measurement import Aim, Row, Section, mebibytes, median
from postgres import Postgres
from tidewater import Installation

TITLE = "Commits"
FLUSH = "10ms"
# Commits on either side of the one that is named: single commits of a few milliseconds scatter.
AROUND = 20
TENS_PER_TRANSACTION = 2

METHOD = f"""\
One transaction of {TENS_PER_TRANSACTION * 10} row changes (12 inserts, 6 updates, 2 deletes) after the other
against a daemon with `flush: {FLUSH}`; the next begins when the version of the one before is in the log, so every
transaction is a version. Counted from just before COMMIT is sent to the time of the version's file, less the
flush's {FLUSH}. The figure for commit n is the median of the {2 * AROUND + 1} commits around it."""


def measure(binary: Path, postgres: Postgres, place: Path, table_rows: int, early: int, late: int) -> Section:
    table = "commits"
    ten_columns.create(postgres, table, table_rows)
    installation = Installation(binary, postgres, place, "commits", table, flush=FLUSH)
    try:
        with installation.running() as daemon:
            seconds = commit_one_by_one(postgres, installation, table_rows, late + AROUND + 1)
        installation.check()
        memory = daemon.wait().peak_memory
    finally:
        installation.remove()
        postgres.sql(f"DROP TABLE {table}")

    def around(number: int) -> float:
        return median(seconds[max(0, number - AROUND) : number + AROUND + 1])

    first, last = around(early), around(late)
    row = Row(
        f"commit {late:,}",
        f"{last * 1000:.1f} ms",
        f"commit {early}: {first * 1000:.1f} ms",
        last / first,
        Aim("≤ 1.25, the same cost", 1.25, at_least=False),
    )
    steps = [late * part // 4 for part in (1, 2, 3)]
    findings = [
        "In between: "
        + ", ".join(f"commit {step:,} {around(step) * 1000:.1f} ms" for step in steps)
        + f"; the slowest of all took {max(seconds) * 1000:.0f} ms.",
        f"The daemon was at most {mebibytes(memory)} resident.",
    ]
    return Section(TITLE, METHOD, [row], findings)


def commit_one_by_one(
    postgres: Postgres, installation: Installation, base: int, commits: int, *, first: int = 0
) -> list[float]:
    """So many transactions, each begun when the one before is a version; `first` tells their batches apart."""
    flush = int(FLUSH.removesuffix("ms")) / 1000
    log = installation.log
    seen = log.last()
    seconds = []
    with postgres.connect(autocommit=False) as session:
        for batch in range(first, first + commits):
            session.execute(
                "SELECT mix(%s::regclass, %s, %s, %s)", (installation.table, base, batch, TENS_PER_TRANSACTION)
            )
            clock = time.time()
            session.commit()
            seen = log.next_of_stream(seen, 60)
            seconds.append(log.path(seen).stat().st_mtime - clock - flush)
    return seconds
