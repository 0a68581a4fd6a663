"""The benchmark suite: every measurement beside its peer in the same run, one table, and `bench/REPORT.md`.

    python bench/run.py [--full] [--scale FACTOR] [--only NAME ...] [--tidewater BINARY]

Needs a release build of `tidewater`, the packages of tests/readers/requirements.txt and bench/requirements.txt,
and PostgreSQL 18, which TIDEWATER_POSTGRES_BIN names. Exits with 1 when something could not be measured; an aim that
is missed is a result, not a failure.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import commit_cost
import core
import first_load
import freshness
import long_life
import one_transaction
import report
import serving
import stream
import upkeep
import upserts
from measurement import Incomplete, Section
from postgres import Postgres

ROOT = Path(__file__).resolve().parent.parent
# Figures that no later run can measure again.
OPTIMISATIONS = Path(__file__).with_name("optimisations.md")
# What the Makefile builds.
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "tidewater"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    inserts: int
    mixed_table: int
    mixed_changes: int
    load: int
    freshness_table: int
    freshness_seconds: int
    upserts: tuple[int, int]
    commit_table: int
    commits: tuple[int, int]
    transaction: int
    life: tuple[int, int]
    upkeep_seconds: int
    served: int
    served_seconds: int
    # A pgbench scale is 15 MB.
    core_scale: int
    core_seconds: int

    def scaled(self, factor: float) -> Sizes:
        """For trying the suite itself. Rows come in thousands, and the small tables keep enough to change."""

        def rows(count: int) -> int:
            return max(1000, int(count * factor) // 1000 * 1000)

        early, late = self.commits
        return Sizes(
            rows(self.inserts),
            max(rows(self.mixed_table), rows(self.mixed_changes)),
            rows(self.mixed_changes),
            rows(self.load),
            self.freshness_table,
            max(5, int(self.freshness_seconds * factor)),
            (max(20_000, rows(self.upserts[0])), max(40_000, rows(self.upserts[1]))),
            self.commit_table,
            (early, max(early * 3, int(late * factor))),
            rows(self.transaction),
            (self.life[0], max(self.life[0] * 2, int(self.life[1] * factor))),
            # Shorter, and there is nothing to compact.
            max(45, int(self.upkeep_seconds * factor)),
            # One version changes 100,000 rows, most of them there already.
            max(200_000, rows(self.served)),
            max(5, int(self.served_seconds * factor)),
            max(2, int(self.core_scale * factor)),
            max(2, int(self.core_seconds * factor)),
        )


QUICK = Sizes(
    inserts=2_000_000,
    mixed_table=1_000_000,
    mixed_changes=1_000_000,
    load=5_000_000,
    freshness_table=500_000,
    freshness_seconds=30,
    upserts=(1_000_000, 10_000_000),
    commit_table=500_000,
    commits=(20, 2_000),
    transaction=1_000_000,
    life=(100, 3_000),
    upkeep_seconds=60,
    served=2_000_000,
    served_seconds=30,
    core_scale=135,
    core_seconds=10,
)
FULL = Sizes(
    inserts=10_000_000,
    mixed_table=10_000_000,
    mixed_changes=5_000_000,
    load=20_000_000,
    freshness_table=500_000,
    freshness_seconds=120,
    upserts=(1_000_000, 20_000_000),
    commit_table=500_000,
    commits=(20, 10_000),
    transaction=10_000_000,
    life=(100, 30_000),
    upkeep_seconds=3_600,
    served=10_000_000,
    served_seconds=60,
    core_scale=280,
    core_seconds=60,
)

Measure = Callable[[Path, Postgres, Path], Section]


def measurements(sizes: Sizes) -> dict[str, Measure]:
    """By the name that `--only` takes, in the order they run."""
    return {
        "inserts": lambda binary, postgres, place: stream.measure_inserts(binary, postgres, place, sizes.inserts),
        "mixed": lambda binary, postgres, place: stream.measure_mixed(
            binary, postgres, place, sizes.mixed_table, sizes.mixed_changes
        ),
        "load": lambda binary, postgres, place: first_load.measure(binary, postgres, place, sizes.load),
        "freshness": lambda binary, postgres, place: freshness.measure(
            binary, postgres, place, sizes.freshness_table, sizes.freshness_seconds
        ),
        "upserts": lambda binary, postgres, place: upserts.measure(binary, postgres, place, list(sizes.upserts)),
        "commits": lambda binary, postgres, place: commit_cost.measure(
            binary, postgres, place, sizes.commit_table, *sizes.commits
        ),
        "transaction": lambda binary, postgres, place: one_transaction.measure(
            binary, postgres, place, sizes.transaction
        ),
        "upkeep": lambda binary, postgres, place: upkeep.measure(
            binary, postgres, place, sizes.freshness_table, sizes.upkeep_seconds
        ),
        "serving": lambda binary, postgres, place: serving.measure(
            binary, postgres, place, sizes.served, sizes.served_seconds
        ),
        "core": lambda binary, postgres, place: core.measure(
            binary, postgres, place, sizes.core_scale, sizes.core_seconds
        ),
        "life": lambda binary, postgres, place: long_life.measure(
            binary, postgres, place, sizes.commit_table, *sizes.life
        ),
    }


def main() -> int:
    arguments = parsed()
    sizes = (FULL if arguments.full else QUICK).scaled(arguments.scale)
    # An orderly end on SIGTERM too: servers are stopped and folders removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began, load_average = time.monotonic(), os.getloadavg()[0]
    sections: list[Section] = []
    failures: dict[str, str] = {}
    place = Path(tempfile.mkdtemp(prefix="tidewater-bench-"))
    try:
        with Postgres(arguments.postgres) as postgres:
            versions = _versions(postgres)
            for name, measure in measurements(sizes).items():
                if arguments.only and name not in arguments.only:
                    continue
                _measure_one(name, measure, arguments.tidewater, postgres, place, sections, failures)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n" + report.table([row for section in sections for row in section.rows]))
    if arguments.report:
        seconds = time.monotonic() - began
        run = report.Circumstances(_command(arguments), ROOT, versions, load_average, seconds)
        arguments.report.write_text(report.report(sections, failures, run) + "\n" + OPTIMISATIONS.read_text())
        print(f"\nbench: written to {os.path.relpath(arguments.report)}")
    return 1 if failures else 0


def _measure_one(
    name: str,
    measure: Measure,
    binary: Path,
    postgres: Postgres,
    place: Path,
    sections: list[Section],
    failures: dict[str, str],
) -> None:
    print(f"bench: {name} …", flush=True)
    began = time.monotonic()
    try:
        section = measure(binary, postgres, place)
    except Incomplete as error:
        failures[name] = str(error)
        print(f"bench: {name} could not be measured: {error}", file=sys.stderr)
    except Exception as error:
        # One measurement that breaks does not take the others with it.
        failures[name] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    else:
        sections.append(section)
        print(report.table(section.rows))
    print(f"bench: {name} took {time.monotonic() - began:.0f} s", flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures Tidewater beside its peers.")
    parser.add_argument("--full", action="store_true", help="larger tables, longer streams; two hours")
    parser.add_argument("--scale", type=float, default=1.0, help="a factor for all sizes, to try the suite itself")
    parser.add_argument("--only", nargs="+", choices=list(measurements(QUICK)), help="only these measurements")
    parser.add_argument("--tidewater", type=Path, default=BINARY, help="the release build to measure")
    parser.add_argument(
        "--postgres",
        type=Path,
        default=os.environ.get("TIDEWATER_POSTGRES_BIN", ROOT / ".tools" / "postgres" / "bin"),
        help="PostgreSQL's programs (default: TIDEWATER_POSTGRES_BIN)",
    )
    parser.add_argument("--report", type=Path, help="where to write the report")
    arguments = parser.parse_args()
    arguments.tidewater = arguments.tidewater.resolve()
    for needed in (arguments.tidewater, arguments.postgres / "postgres"):
        if not os.access(needed, os.X_OK):
            parser.error(f"{needed} is not there or cannot be executed: `make bench` builds and finds everything")
    return arguments


def _command(arguments: argparse.Namespace) -> str:
    """What was asked for, in words that anybody can repeat."""
    if not arguments.only and arguments.scale == 1:
        return "make bench-full" if arguments.full else "make bench"
    words = ["bench/run.py"]
    words += ["--full"] if arguments.full else []
    words += ["--scale", str(arguments.scale)] if arguments.scale != 1 else []
    words += ["--only", *arguments.only] if arguments.only else []
    return " ".join(words)


def _versions(postgres: Postgres) -> str:
    packages = ", ".join(
        f"{name} {version(package)}"
        for name, package in (("DuckDB", "duckdb"), ("deltalake (delta-rs for Python)", "deltalake"))
    )
    return f"PostgreSQL {postgres.value('SHOW server_version')}, {packages}"


if __name__ == "__main__":
    sys.exit(main())
