"""A table that has lived long: what tens of thousands of commits cost whoever opens it for the first time."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import ten_columns
from commit_cost import commit_one_by_one
from measurement import Aim, Row, Section, mebibytes, median, spread
from postgres import Postgres
from processes import Program
from tidewater import Installation

TITLE = "Long life"
# As short as a flush can be: an hour of one-second flushes passes in a minute.
FLUSH = "10ms"
OPENS = 5

METHOD = f"""\
Small transactions one after the other, each of them a commit (as in "Commits"), all settings at their defaults. The
table is copied aside after the first {{early:,}} commits and after the last. Then one process for each engine opens the two in
turn, {OPENS} copies of each so that nothing is cached by path, after opening one of each that is not counted: engines
are warm, tables are not. Opening means to count the rows and sum a column."""


def measure(binary: Path, postgres: Postgres, place: Path, table_rows: int, early: int, late: int) -> Section:
    table = "long_life"
    ten_columns.create(postgres, table, table_rows)
    installation = Installation(binary, postgres, place, "long", table, flush=FLUSH)
    copies = place / "long_copies"
    copies.mkdir()
    try:
        with installation.running() as daemon:
            commit_one_by_one(postgres, installation, table_rows, early)
            young = _copy(installation, copies, "young")
            commit_one_by_one(postgres, installation, table_rows, late - early, first=early)
            old = _copy(installation, copies, "old")
        installation.check()
        memory = daemon.wait().peak_memory
        opened = {engine: _open(engine, place, young, old) for engine in ("duckdb", "spark")}
        young_size, old_size = _size(young[0]), _size(old[0])
    finally:
        shutil.rmtree(copies, ignore_errors=True)
        installation.remove()
        postgres.sql(f"DROP TABLE {table}")
    rows, findings = [], []
    for engine, (after_early, after_late) in opened.items():
        rows.append(
            Row(
                f"cold open by {engine} after {late:,} commits",
                f"{median(after_late):.2f} s",
                f"after {early:,}: {median(after_early):.2f} s",
                median(after_late) / median(after_early),
                Aim("≤ 2", 2.0, at_least=False),
            )
        )
        findings.append(f"{engine}, single opens: {spread(after_early)} s, later {spread(after_late)} s.")
    findings.append(
        f"After {early:,} commits: {young_size}; after {late:,}: {old_size}. The daemon was at most "
        f"{mebibytes(memory)} resident."
    )
    return Section(TITLE, METHOD.format(early=early), rows, findings)


def _copy(installation: Installation, copies: Path, name: str) -> list[Path]:
    """As many copies as are opened; hard links, since nobody writes into a file that has its name."""
    made = []
    for number in range(OPENS + 1):
        target = copies / f"{name}_{number}"
        # The daemon goes on meanwhile: what it removes in the middle of a copy may be left out.
        shutil.copytree(installation.log.table, target, copy_function=_link, ignore_dangling_symlinks=True)
        made.append(target)
    return made


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except FileNotFoundError:
        pass


def _open(engine: str, place: Path, young: list[Path], old: list[Path]) -> tuple[list[float], list[float]]:
    answer = place / f"opened_{engine}.json"
    paths = [path for pair in zip(young, old, strict=True) for path in pair]
    script = Path(__file__).with_name("cold_open.py")
    ended = Program([sys.executable, script, engine, answer, *paths], place / "cold_open.log").wait()
    if ended.status != 0:
        raise RuntimeError((place / "cold_open.log").read_text()[-2000:])
    seconds = json.loads(answer.read_text())
    # The first of each kind warmed the engine up.
    return seconds[2::2], seconds[3::2]


def _size(table: Path) -> str:
    log = [path for path in (table / "_delta_log").iterdir() if path.is_file()]
    data = [path for path in table.iterdir() if path.suffix == ".parquet"]
    return (
        f"{len(log):,} files in the log ({mebibytes(sum(path.stat().st_size for path in log))}), {len(data):,} data "
        f"files ({mebibytes(sum(path.stat().st_size for path in data))}), live and not yet expired"
    )
