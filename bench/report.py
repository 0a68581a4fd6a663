"""The table on the terminal and in `bench/REPORT.md`."""

from __future__ import annotations

import os
import platform
import subprocess
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from measurement import Row, Section

HEADINGS = ("work", "ours", "compared with", "ratio", "aim", "met?")
WIDTH = 118


def cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    return (row.work, row.ours, row.compared_with, ratio, row.aim.text if row.aim else "", met)


def table(rows: list[Row]) -> str:
    lines = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (lines[0], rule, *lines[1:])
    )


@dataclass(frozen=True)
class Circumstances:
    """What the figures must be read with."""

    command: str
    root: Path
    versions: str
    load_average: float
    seconds: float


def report(sections: list[Section], failures: dict[str, str], run: Circumstances) -> str:
    rows = [row for section in sections for row in section.rows]
    missed = [row for row in rows if row.met is False]
    parts = [
        "# Benchmark report",
        f"Written by `{run.command}`; [README.md](README.md) says what is measured and how to run it.",
        _bullets(
            [
                f"Commit: {_commit(run.root)}, release build.",
                f"Machine: {_machine()}. PostgreSQL, Tidewater, the peers and the readers share it. "
                f"Its load average was {run.load_average:.1f} before the start.",
                f"Versions: {run.versions}.",
                f"Took {run.seconds / 60:.0f} minutes. Figures are medians of alternating runs; ratios are of medians "
                "from this same run, and are what counts: absolute times drift on shared machines.",
            ]
        ),
        "## Results",
        table(rows),
        _judgement(missed, failures),
    ]
    for title in dict.fromkeys(section.title for section in sections):
        parts.append(f"## {title}")
        mine = [section for section in sections if section.title == title]
        parts += dict.fromkeys(_filled(section.method) for section in mine)
        parts.append(_bullets([finding for section in mine for finding in section.findings]))
    return "\n\n".join(parts) + "\n"


def _judgement(missed: list[Row], failures: dict[str, str]) -> str:
    said = []
    if missed:
        said.append("Short of the aim: " + "; ".join(f"{row.work} ({row.aim.text})" for row in missed if row.aim) + ".")
    said += [f"Not measured: {name}. {reason.splitlines()[0]}" for name, reason in failures.items()]
    return _filled(" ".join(said) or "Every aim is met.")


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def _bullets(lines: list[str]) -> str:
    return "\n".join(
        textwrap.fill(
            line, WIDTH, initial_indent="* ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for line in lines
    )


def _commit(root: Path) -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    # The report itself is always about to change.
    changed = [
        line
        for line in git("status", "--porcelain", "--untracked-files=no").splitlines()
        if "bench/REPORT.md" not in line
    ]
    return f"{commit} of {git('log', '-1', '--format=%cs') or time.strftime('%Y-%m-%d')}" + (
        ", with uncommitted changes" if changed else ""
    )


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{cores} cores ({platform.machine()}), {memory:.0f} GiB of memory, {system}"
