"""Our side: one installation of Tidewater with its own lake, slot and publications.

A *starting point* keeps an installation as it is, its lake, its state and its slot, so that the same WAL
can be read from the same beginning again, by us and, through copies of the slot, by a peer.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from delta_log import DeltaLog
from duckdb_extension import load_extension
from measurement import Incomplete
from postgres import DATABASE, Logged, Postgres, free_port
from processes import Ended, ProcessorTime, Program, wait_for
from ten_columns import figures

START_LIMIT = 120.0


@dataclass(frozen=True)
class CaughtUp:
    """One `run --until-caught-up`. Seconds from START_REPLICATION to the last commit in the log."""

    seconds: float
    process: Ended
    walsender_processor_seconds: float
    versions: int
    loads: int


class Installation:
    """A lake, a state directory and a configuration for one table."""

    def __init__(
        self, binary: Path, postgres: Postgres, place: Path, instance: str, table: str, *, flush: str = "1s"
    ) -> None:
        self._binary = binary
        self.postgres = postgres
        self.instance = instance
        self.table = table
        self.place = place / instance
        self.place.mkdir()
        self.lake = self.place / "lake"
        self.state = self.place / "state"
        self.slot = f"tidewater_{instance}_{DATABASE}_g1"
        self.publications = f"tidewater_{instance}_{DATABASE}, tidewater_{instance}_{DATABASE}_inserts"
        self.log = DeltaLog(self.lake / DATABASE / "public" / table)
        self._configuration = self.place / "tidewater.yaml"
        self._configuration.write_text(
            "version: 1\n"
            f"instance: {instance}\n"
            f"lake: {{uri: {self.lake}}}\n"
            f"state_dir: {self.state}\n"
            f'databases: {{{DATABASE}: {{url: "{postgres.url}"}}}}\n'
            f"to_lake:\n  - {{database: {DATABASE}, tables: [public.{table}], flush: {flush}}}\n"
            f'listen: {{http: "127.0.0.1:{free_port()}"}}\n'
        )

    def _program(self, *arguments: str) -> Program:
        command = [self._binary, "--config", self._configuration, "run", *arguments]
        return Program(command, self.place / "tidewater.log", cwd=self.place)

    def catch_up(self, limit: float = 300.0) -> CaughtUp:
        """Brings the lake up to the source's present position."""
        before, logged = self.log.last(), self.postgres.log_position()
        walsender = ProcessorTime()
        started: Logged | None = None

        def look() -> None:
            nonlocal started
            started = started or self.postgres.slot_started(logged, self.slot)
            walsender.look_at(started and started.pid)

        process = self._program("--until-caught-up").finish(limit, meanwhile=look)
        started = started or self.postgres.slot_started(logged, self.slot)
        after = self.log.last()
        if started is None or after < 0:
            raise Incomplete(
                f"tidewater ended without having streamed\n{(self.place / 'tidewater.log').read_text()[-2000:]}"
            )
        seconds = self.log.version(after).appeared - started.at
        loads = sum(self.log.version(number).is_load for number in range(before + 1, after + 1))
        return CaughtUp(seconds, process, walsender.seconds, after - before, loads)

    @contextmanager
    def running(self) -> Iterator[Program]:
        """The daemon, once it streams. It is stopped in order at the end, or at once when the measurement broke."""
        daemon = self._program()
        try:
            wait_for("tidewater to stream", lambda: self._streams(daemon), START_LIMIT)
            yield daemon
        except BaseException:
            daemon.kill()
            raise
        if daemon.stop(signal.SIGTERM).status != 0:
            raise Incomplete(f"tidewater did not stop in order\n{daemon.tail()}")

    def _streams(self, daemon: Program) -> bool:
        if daemon.poll() is not None:
            raise Incomplete(f"tidewater ended at once\n{daemon.tail()}")
        active = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND active"
        return self.log.last() >= 0 and self.postgres.value(active, (self.slot,)) == 1

    def check(self) -> None:
        """The lake holds what the source holds, as DuckDB reads it; a fast wrong answer is no result."""
        with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as session:
            load_extension(session, "delta")
            found = session.execute(
                "SELECT count(*), coalesce(sum(id), 0)::bigint, coalesce(sum(quantity), 0)::bigint FROM delta_scan(?)",
                [str(self.log.table)],
            ).fetchone()
        expected = figures(self.postgres, self.table)
        if found != expected:
            raise Incomplete(f"the lake has count, sum(id), sum(quantity) {found}, the source {expected}")

    def remove(self) -> None:
        self.postgres.drop_all_slots_and_publications()
        shutil.rmtree(self.place, ignore_errors=True)


class StartingPoint:
    """An installation as it is now, to come back to."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._kept = installation.place / "kept"
        self.slot = f"kept_{installation.instance}"
        installation.postgres.copy_slot(installation.slot, self.slot)
        for folder in (installation.lake, installation.state):
            shutil.copytree(folder, self._kept / folder.name, ignore=_sockets)

    def restore(self) -> None:
        """The installation is as it was; its slot gives the same WAL again."""
        installation = self._installation
        installation.postgres.drop_slot(installation.slot)
        installation.postgres.copy_slot(self.slot, installation.slot)
        for folder in (installation.lake, installation.state):
            shutil.rmtree(folder)
            shutil.copytree(self._kept / folder.name, folder)


def _sockets(folder: str, names: list[str]) -> set[str]:
    """A stopped daemon's control socket is no state."""
    return {name for name in names if Path(folder, name).is_socket()}
