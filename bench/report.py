"""The table on the terminal and in `bench/REPORT.md`."""

from __future__ import annotations

import os
import platform
import subprocess
import textwrap
import time
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

    # Figures that are compared stand right-aligned.
    def written(line: tuple[str, ...]) -> str:
        return (
            "| "
            + " | ".join(
                cell.rjust(width) if HEADINGS[at] == "ratio" else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(line, widths))
            )
            + " |"
        )

    rule = (
        "|"
        + "|".join("-" * (width + 1) + (":" if HEADINGS[at] == "ratio" else "-") for at, width in enumerate(widths))
        + "|"
    )
    return "\n".join([written(lines[0]), rule, *(written(line) for line in lines[1:])])


def report(
    sections: list[Section], failures: dict[str, str], how: str, root: Path, versions: str, seconds: float
) -> str:
    rows = [row for section in sections for row in section.rows]
    missed = [row for row in rows if row.met is False]
    parts = [
        "# Benchmark report",
        "Written by `" + how + "`; [README.md](README.md) says what is measured and how to run it.",
        _bullets(
            [
                f"Commit: {_commit(root)}, release build.",
                f"Machine: {_machine()}. PostgreSQL, Tidewater, the peers and the readers share it; nothing else ran.",
                f"Versions: {versions}.",
                f"Took {seconds / 60:.0f} minutes. Every figure is a median of alternating runs; ratios are of medians from this same run "
                "and are what counts, since absolute times drift on shared machines.",
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
    return f"{cores} cores ({platform.machine()}), {memory:.0f} GiB of memory, {platform.system()} {platform.release().split('-')[0]}"
