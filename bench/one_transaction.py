"""Memory for one very large transaction with savepoints, beside the same rows in small ones."""

from __future__ import annotations

from pathlib import Path

import ten_columns
from measurement import Aim, Row, Section, mebibytes
from postgres import Postgres
from tidewater import CaughtUp, Installation

TITLE = "One transaction"
ROWS_PER_TRANSACTION = 1000
ROWS_PER_SAVEPOINT = 1000
# An ordinary transaction, to show how little of the memory is due to the size of the others.
SMALL = 10_000
STEPS = 10

METHOD = f"""\
The same number of rows is inserted twice, first in transactions of {ROWS_PER_TRANSACTION:,} rows, then in a single
one, which the server streams while it is in progress; `tidewater run --until-caught-up` follows after each, in a
process of its own. The single one sets a savepoint before every {ROWS_PER_SAVEPOINT:,} rows; every tenth savepoint is
rolled back to, and its rows are written again. Memory is the kernel's peak of that process."""


def measure(binary: Path, postgres: Postgres, place: Path, rows: int) -> Section:
    table = "one_transaction"
    ten_columns.create(postgres, table, 0)
    installation = Installation(binary, postgres, place, "transaction", table)
    first = 1

    def follow(call: str, count: int) -> CaughtUp:
        nonlocal first
        postgres.fill(f"CALL {call.format(table=table, first=first, count=count)}")
        first += count
        postgres.settle()
        return installation.catch_up()

    at_once = f"insert_at_once('{{table}}', {{first}}, {{count}}, {ROWS_PER_SAVEPOINT})"
    one_by_one = f"insert_rows('{{table}}', {{first}}, {{count}}, {ROWS_PER_TRANSACTION})"
    sizes = sorted({SMALL, max(SMALL, rows // STEPS), rows})
    try:
        installation.catch_up()
        small = follow(one_by_one, rows)
        large = {size: follow(at_once, size) for size in sizes}
        installation.check()
    finally:
        installation.remove()
        postgres.sql(f"DROP TABLE {table}")
    largest = large[rows]
    peak, usual = largest.process.peak_memory, small.process.peak_memory
    row = Row(
        f"one transaction of {rows:,} inserts, peak resident memory",
        mebibytes(peak),
        f"the same in small ones: {mebibytes(usual)}",
        peak / usual,
        Aim("≤ 1.25, as for small ones", 1.25, at_least=False),
    )
    findings = [
        f"It took {largest.seconds:.1f} s ({rows / largest.seconds:,.0f} rows/s) and {largest.versions} commit(s); "
        f"the small ones took {small.seconds:.1f} s ({rows / small.seconds:,.0f} rows/s) and {small.versions}.",
        "Peaks by the transaction's rows: "
        + ", ".join(f"{size:,} {mebibytes(caught_up.process.peak_memory)}" for size, caught_up in large.items())
        + ".",
    ]
    return Section(TITLE, METHOD, [row], findings)
