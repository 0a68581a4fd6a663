"""Upkeep: flush after flush, second after second; the number of files stays small and nobody waits for compaction."""

from __future__ import annotations

from pathlib import Path

import freshness
import ten_columns
from delta_log import DeltaLog, Version
from measurement import Aim, Incomplete, Row, Section, mebibytes, percentile
from postgres import Postgres
from tidewater import Installation

TITLE = "Upkeep beside the flushes"
CHANGES_PER_SECOND = 1000
# What the operating guide promises, and a few full files.
FILES = Aim("≤ 50", 50, at_least=False)
# A transaction that was committed so shortly before a compaction may have waited for it.
BEFORE = 5.0

METHOD = f"""\
As in "Freshness", with {CHANGES_PER_SECOND:,} row changes a second and all settings of upkeep at their defaults. Live data
files are counted at every version, from the log. Transactions count as beside a compaction when their COMMIT was sent
in the {BEFORE:.0f} seconds before the compaction's own version appeared."""


def measure(binary: Path, postgres: Postgres, place: Path, table_rows: int, seconds: int) -> Section:
    table = "upkeep"
    ten_columns.create(postgres, table, table_rows)
    installation = Installation(binary, postgres, place, "upkeep", table, flush="1s")
    try:
        with installation.running() as daemon:
            committed, seen = freshness.observe(
                postgres, place, installation, table_rows, seconds, CHANGES_PER_SECOND
            )
        installation.check()
        memory = daemon.wait().peak_memory
        versions = _versions(installation.log)
    finally:
        installation.remove()
        postgres.sql(f"DROP TABLE {table}")
    files, live = [], 0
    for version in versions:
        live += version.files_more
        files.append(live)
    compactions = [version for version in versions if version.is_compaction]
    if not compactions:
        raise Incomplete(f"nothing was compacted in {seconds} s: a longer run is needed")
    delays = freshness.delays_of(committed, seen)
    ends = [version.appeared for version in compactions]
    beside = [
        delay
        for (clock, _), delay in zip(committed, delays, strict=True)
        if any(end - BEFORE <= clock <= end for end in ends)
    ]
    half, most = percentile(beside, 0.5), percentile(beside, 0.99)
    work = f"{CHANGES_PER_SECOND:,} row changes/s for {seconds:,} s"
    rows = [
        Row(f"{work}: most live data files", f"{max(files)}", "", aim=FILES, judged=float(max(files))),
        Row(f"{work}: freshness beside compactions, p50", f"{half:.2f} s", "", aim=freshness.HALF, judged=half),
        Row(f"{work}: freshness beside compactions, p99", f"{most:.2f} s", "", aim=freshness.MOST, judged=most),
    ]
    findings = [
        f"{len(versions):,} versions, {len(compactions)} of them compactions; {files[-1]} live data files at the end. "
        f"{len(beside):,} of {len(committed):,} transactions were beside a compaction; over all p50 was "
        f"{percentile(delays, 0.5):.2f} s and p99 {percentile(delays, 0.99):.2f} s. The daemon was at most "
        f"{mebibytes(memory)} resident."
    ]
    return Section(TITLE, METHOD, rows, findings)


def _versions(log: DeltaLog) -> list[Version]:
    return [log.version(number) for number in range(log.last() + 1)]
