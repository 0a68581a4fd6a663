"""Memory for one very large transaction, beside the same rows in small ones."""

from __future__ import annotations

from pathlib import Path

import ten_columns
from measurement import Aim, Row, Section, mebibytes
from postgres import Postgres
from tidewater import CaughtUp, Installation

TITLE = "One transaction"
ROWS_PER_TRANSACTION = 1000

METHOD = f"""\
The same number of rows is inserted twice, first in transactions of {ROWS_PER_TRANSACTION} rows, then in a single
one, which the server streams while it is in progress; `tidewater run --until-caught-up` follows after each, in a
process of its own. Memory is the kernel's peak of that process."""


def measure(binary: Path, postgres: Postgres, place: Path, rows: int) -> Section:
    table = "one_transaction"
    ten_columns.create(postgres, table, 0)
    installation = Installation(binary, postgres, place, "transaction", table)
    try:
        installation.catch_up()
        small = _follow(postgres, installation, 1, rows, ROWS_PER_TRANSACTION)
        large = _follow(postgres, installation, rows + 1, rows, rows)
        installation.check()
    finally:
        installation.remove()
        postgres.sql(f"DROP TABLE {table}")
    peak, usual = large.process.peak_memory, small.process.peak_memory
    row = Row(
        f"one transaction of {rows:,} inserts, peak resident memory",
        mebibytes(peak),
        f"the same in small ones: {mebibytes(usual)}",
        peak / usual,
        Aim("≤ 1.25, as for small ones", 1.25, at_least=False),
    )
    findings = [
        f"It took {large.seconds:.1f} s ({rows / large.seconds:,.0f} rows/s) and {large.versions} commit(s); "
        f"the small ones took {small.seconds:.1f} s ({rows / small.seconds:,.0f} rows/s) and {small.versions}."
    ]
    return Section(TITLE, METHOD, [row], findings)


def _follow(postgres: Postgres, installation: Installation, first: int, rows: int, per_transaction: int) -> CaughtUp:
    postgres.fill(f"CALL insert_rows('{installation.table}', {first}, {rows}, {per_transaction})")
    postgres.settle()
    return installation.catch_up()
