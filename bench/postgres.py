"""A PostgreSQL of the run's own: started, filled, its slots kept and copied, stopped, removed.

Its log carries the moment at which a session sends a replication command, by the server's clock. That is
where a stream or a load begins, for us and for every peer alike, so start-up of the programs counts for nobody.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psycopg

from measurement import Incomplete
from processes import Program, wait_for

DATABASE = "bench"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "shared_buffers": "512MB",
    # Neither a checkpoint nor a vacuum in the middle of one run and not of its peer's.
    "max_wal_size": "32GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "log_replication_commands": "on",
    # Seconds since 1970 with milliseconds, then the process.
    "log_line_prefix": "%n %p ",
    "timezone": "UTC",
}

# A server as it comes, so that each commit is on the disk when it returns; beside the built-in one.
DURABLE = {"listen_addresses": "127.0.0.1", "shared_buffers": "128MB", "timezone": "UTC"}

PGBENCH_LIMIT = 900.0


@dataclass(frozen=True)
class Logged:
    """A line of the server's log."""

    at: float
    pid: int


class Postgres:
    """A running server. Use it as a context."""

    def __init__(self, binaries: Path, settings: dict[str, str] = SETTINGS) -> None:
        self._binaries = binaries
        self._settings = settings
        self._user = unprivileged_user()
        self.place = Path(tempfile.mkdtemp(prefix="tidewater-bench-pg-"))
        self.port = free_port()
        self._log = self.place / "log"
        self._server: Program | None = None

    def __enter__(self) -> Postgres:
        try:
            self._start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _start(self) -> None:
        if self._user:
            os.chown(self.place, self._user["user"], self._user["group"])
        data = self.place / "data"
        initdb = [
            self.binary("initdb"),
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]
        Program(initdb, self.place / "initdb.log", cwd=self.place, **self._user).finish(120)
        command = [self.binary("postgres"), "-D", data, "-p", str(self.port), "-k", self.place]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        self._server = Program(command, self._log, cwd=self.place, **self._user)
        wait_for("PostgreSQL to accept connections", self._answers, 60)
        with self.connect("postgres") as session:
            session.execute(f"CREATE DATABASE {DATABASE}")

    def _answers(self) -> bool:
        if self._server is None or self._server.poll() is not None:
            raise Incomplete("PostgreSQL did not start: " + self._log.read_text(errors="replace")[-1000:])
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def _remove(self) -> None:
        if self._server is not None and self._server.poll() is None:
            try:
                self._server.stop(signal.SIGINT)
            except Incomplete:
                self._server.kill()
        shutil.rmtree(self.place, ignore_errors=True)

    def another(self, settings: dict[str, str]) -> Postgres:
        """A second server of the same programs."""
        return Postgres(self._binaries, settings)

    def pgbench(self, *arguments: str, inside: bool = False) -> str:
        """What it says of this server, over TCP or its Unix socket."""
        host = str(self.place) if inside else "127.0.0.1"
        return self.run_pgbench(["-h", host, "-p", str(self.port), "-U", "postgres", *arguments, DATABASE], None)

    def run_pgbench(self, arguments: list[str], environment: dict[str, str] | None) -> str:
        """What it says, of any server."""
        log = self.place / "pgbench.log"
        log.unlink(missing_ok=True)
        Program([self.binary("pgbench"), *arguments], log, cwd=self.place, env=environment).finish(PGBENCH_LIMIT)
        return log.read_text()

    def binary(self, name: str) -> Path:
        return self._binaries / name

    def as_its_user(self) -> dict:
        """Arguments that make a program run as the server's user."""
        return dict(self._user)

    def connect(self, database: str = DATABASE, *, autocommit: bool = True) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            dbname=database,
            autocommit=autocommit,
            connect_timeout=5,
        )

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def client_arguments(self) -> list[str]:
        """For PostgreSQL's own programs: over TCP, as Tidewater connects."""
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", DATABASE]

    def sql(self, query: str, parameters: tuple = ()) -> list[tuple]:
        with self.connect() as session:
            answer = session.execute(query, parameters or None)
            return answer.fetchall() if answer.description else []

    def fill(self, statement: str) -> None:
        """Writes in bulk: nobody waits for the disk at every commit."""
        with self.connect() as session:
            session.execute("SET synchronous_commit = off")
            session.execute(statement)

    def value(self, query: str, parameters: tuple = ()):
        return self.sql(query, parameters)[0][0]

    def settle(self) -> None:
        """Everything dirty is written now, not during the next run."""
        self.sql("CHECKPOINT")

    def copy_slot(self, source: str, copy: str) -> None:
        self.sql("SELECT pg_copy_logical_replication_slot(%s, %s)", (source, copy))

    def drop_slot(self, name: str) -> None:
        """Drops it once its walsender has noticed that the client went."""
        gone_or_idle = "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = %s AND active"
        wait_for(f"slot {name} to be let go", lambda: self.value(gone_or_idle, (name,)), 30)
        self.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (name,))

    def drop_all_slots_and_publications(self) -> None:
        for (name,) in self.sql("SELECT slot_name FROM pg_replication_slots"):
            self.drop_slot(name)
        for (name,) in self.sql("SELECT quote_ident(pubname) FROM pg_publication"):
            self.sql(f"DROP PUBLICATION {name}")

    def end_of_wal(self) -> str:
        return self.value("SELECT pg_current_wal_insert_lsn()::text")

    def log_position(self) -> int:
        return self._log.stat().st_size

    def logged(self, since: int, text: str) -> Logged | None:
        """The first line after a position in the log that has `text`."""
        with self._log.open("rb") as log:
            log.seek(since)
            for line in log.read().decode(errors="replace").splitlines():
                if text in line and (found := re.match(r"(\d+\.\d+) (\d+) ", line)):
                    return Logged(at=float(found[1]), pid=int(found[2]))
        return None

    def slot_started(self, since: int, slot: str) -> Logged | None:
        return self.logged(since, f'starting logical decoding for slot "{slot}"')


def unprivileged_user() -> dict:
    """Who runs the server when we are root, whom it refuses."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return {"user": 65534, "group": 65534, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
