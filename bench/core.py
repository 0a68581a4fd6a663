"""The built-in Postgres: throughput beside a stock server, branches, waking, restore points, new projects."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from measurement import Aim, Incomplete, Row, Section, median, mebibytes, percentile, significant, spread
from postgres import DURABLE, Postgres, free_port
from processes import Program, wait_for

TITLE = "The built-in Postgres"
RUNS = 3
CLIENTS = 8
BRANCHES = 20
WAKES = 9
PROJECTS = 50
# Pages that change between two restore points.
DIRTY_PAGES = (100, 1_000, 10_000)
PASSWORD = "bench"

METHOD = f"""\
The peer is a stock PostgreSQL of the same version and with default durability (fsync, full_page_writes and
synchronous_commit on), both with shared_buffers 128 MB, on the same disk; a commit of ours returns once the WAL keeper
has flushed it. pgbench runs with {CLIENTS} clients and prepared statements, {RUNS} times each in turn, over TCP: to the
stock server directly, to ours through the gateway; and the same with the gateway left out, over each server's Unix
socket, to see what the gateway costs. Branch: `POST /api/v1/branches` from the running `main` until it
answers, {BRANCHES} of them. Wake: from opening a connection to a sleeping database to the first row of an indexed
lookup, {WAKES} times; warm after a suspend on the same machine, cold with the page cache and all other local state of
the branch removed. Restore point: from asking the running branch for a cut until its manifest is in the store, right
after a transaction that changed so many pages. Projects: {PROJECTS} databases more in the configuration, from the
daemon's start until it is ready, less what the next start takes, which finds them; none of them is started."""


def measure(binary: Path, postgres: Postgres, place: Path, scale: int, seconds: int) -> Section:
    core = Core(binary, postgres, place)
    try:
        with core.running():
            section = _measured(core, postgres, scale, seconds)
        rate, idle = core.projects()
        section.rows.append(
            Row("new projects", f"{rate:.0f}/s", f"{idle:,.0f} bytes in the store for one that nobody uses")
        )
        return section
    finally:
        core.remove()


def _measured(core: Core, postgres: Postgres, scale: int, seconds: int) -> Section:
    small = core.branches("small")
    core.fill(scale)
    size = core.value("SELECT pg_database_size(current_database())")
    with postgres.another(DURABLE) as stock:
        stock.pgbench("-i", "-q", "-s", str(scale))
        writes = core.beside(stock, seconds)
        reads = core.beside(stock, seconds, "-S")
        inner_writes = core.beside(stock, seconds, inside=True)
        inner_reads = core.beside(stock, seconds, "-S", inside=True)
    large = core.branches("large")
    cuts = {pages: core.restore_point(pages) for pages in DIRTY_PAGES}
    warm, cold = core.wakes(cold=False), core.wakes(cold=True)
    what = f"{mebibytes(size)} database"
    rows = [
        _throughput("read/write", writes, 1.0),
        _throughput("read only", reads, 0.95),
        _throughput("read/write, without the gateway", inner_writes),
        _throughput("read only, without the gateway", inner_reads),
        _latency("branch of a fresh database, p50", small, 50),
        _latency(f"branch of a {what}, p50", large, 50),
        _latency(f"wake to first row, same machine, {what}, p50", warm, 100),
        _latency(f"wake to first row, cold from the store, {what}, p50", cold, 300),
        *(
            Row(f"restore point after {pages:,} changed pages", f"{took * 1000:.0f} ms", f"{took / pages * 1e6:.0f} µs a page")
            for pages, took in cuts.items()
        ),
    ]
    findings = [
        f"Single runs, transactions/s: read/write {spread([own for own, _ in writes])}, stock {spread([peer for _, peer in writes])}; "
        f"read only {spread([own for own, _ in reads])}, stock {spread([peer for _, peer in reads])}. Without the gateway: "
        f"read/write {spread([own for own, _ in inner_writes])}, stock {spread([peer for _, peer in inner_writes])}; "
        f"read only {spread([own for own, _ in inner_reads])}, stock {spread([peer for _, peer in inner_reads])}. "
        f"pgbench scale {scale}.",
        f"p90 of a branch {percentile(large, 0.9) * 1000:.0f} ms, of a warm wake {percentile(warm, 0.9) * 1000:.0f} ms, "
        f"of a cold one {percentile(cold, 0.9) * 1000:.0f} ms. The store is a folder on the same disk.",
    ]
    return Section(TITLE, METHOD, rows, findings)


def _throughput(work: str, figures: list[tuple[float, float]], bound: float | None = None) -> Row:
    own, peer = (median([pair[at] for pair in figures]) for at in (0, 1))
    return Row(
        f"core, pgbench {work}", f"{significant(own)} tps", f"stock PostgreSQL: {significant(peer)} tps",
        own / peer, Aim(f"≥ {bound} of it", bound) if bound else None,
    )  # fmt: skip


def _latency(work: str, seconds: list[float], bound: int) -> Row:
    milliseconds = median(seconds) * 1000
    aim = Aim(f"≤ {bound} ms", bound, at_least=False)
    return Row(work, f"{milliseconds:.0f} ms", "", aim=aim, judged=milliseconds)


class Core:
    """An installation with one built-in database, `shop`."""

    def __init__(self, binary: Path, postgres: Postgres, place: Path) -> None:
        self._binary = binary
        self._postgres = postgres
        self.place = place / "core"
        self.place.mkdir()
        # A socket's path has little room; a longer one would lie somewhere else.
        self._state = Path(tempfile.mkdtemp(prefix="tidewater-", dir="/tmp"))
        self._port = free_port()
        self._http = free_port()
        self._configure(0)

    def _configure(self, projects: int) -> None:
        shop = f'shop: {{core: {{password: {PASSWORD}, settings: {{shared_buffers: 128MB}}}}}}'
        others = "".join(f"  task_{number}: {{core: {{}}}}\n" for number in range(projects))
        (self.place / "tidewater.yaml").write_text(
            "version: 1\n"
            f"lake: {{uri: {self.place / 'lake'}}}\n"
            f"state_dir: {self._state}\n"
            f'core: {{storage: {self.place / "store"}, listen: "127.0.0.1:{self._port}", suspend_after: 0s, '
            f"cache: 512MiB, postgres_bin: {self._postgres.binary('postgres').parent.resolve()}}}\n"
            f"databases:\n  {shop}\n{others}"
            f'listen: {{http: "127.0.0.1:{self._http}"}}\n'
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        daemon = self._started()
        try:
            yield
        except BaseException:
            # In order too: its processes would outlive it.
            daemon.stop(signal.SIGTERM)
            raise
        if daemon.stop(signal.SIGTERM).status != 0:
            raise Incomplete(f"tidewater did not stop in order\n{daemon.tail()}")

    def _started(self) -> Program:
        command = [self._binary, "--config", self.place / "tidewater.yaml", "run"]
        daemon = Program(command, self.place / "tidewater.log", cwd=self.place)
        wait_for("tidewater to be ready", lambda: self._is_ready(daemon), 120)
        return daemon

    def _is_ready(self, daemon: Program) -> bool:
        if daemon.poll() is not None:
            raise Incomplete(f"tidewater ended at once\n{daemon.tail()}")
        try:
            return self._ask("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def _ask(self, method: str, path: str, body: dict | None = None) -> tuple[int, str]:
        """Over the control socket, as the commands do."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self._state / "control.sock"))
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def _done(self, method: str, path: str, body: dict | None = None):
        status, text = self._ask(method, path, body)
        if status != 200:
            raise Incomplete(f"{method} {path} was answered with {status}: {text}")
        return json.loads(text)

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self._port, user="shop", password=PASSWORD, dbname="shop",
            autocommit=True, connect_timeout=60,
        )  # fmt: skip

    def value(self, query: str):
        with self.connect() as session:
            return session.execute(query).fetchone()[0]

    def _pgbench(self, *arguments: str, inside: bool = False) -> str:
        """Through the gateway, or at the compute's own socket, which nobody but the machine's owner can reach."""
        host, port = (str(self._compute() / "run"), 5432) if inside else ("127.0.0.1", self._port)
        where = ["-h", host, "-p", str(port), "-U", "shop"]
        environment = os.environ | {"PGPASSWORD": PASSWORD}
        return self._postgres.run_pgbench([*where, *arguments, "shop"], environment)

    def fill(self, scale: int) -> None:
        self._pgbench("-i", "-q", "-s", str(scale))

    def beside(
        self, stock: Postgres, seconds: int, *arguments: str, inside: bool = False
    ) -> list[tuple[float, float]]:
        """Transactions per second of ours and of the stock server's, run by run."""
        options = ["-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2", "-T", str(seconds), *arguments]
        found = []
        for _ in range(RUNS):
            peer = stock.pgbench(*options, inside=inside)
            found.append((_transactions(self._pgbench(*options, inside=inside)), _transactions(peer)))
        return found

    def branches(self, name: str) -> list[float]:
        """Seconds that each branch took."""
        self.value("SELECT 1")
        found = []
        for number in range(BRANCHES):
            began = time.perf_counter()
            self._done("POST", "/api/v1/branches", {"branch": f"shop@{name}_{number}"})
            found.append(time.perf_counter() - began)
        for number in range(BRANCHES):
            self._done("DELETE", f"/api/v1/branches/shop@{name}_{number}")
        return found

    def restore_point(self, pages: int) -> float:
        """Seconds of a cut with that many dirty pages and some, median."""
        found = []
        with self.connect() as session:
            session.execute("DROP TABLE IF EXISTS cut; CREATE TABLE cut (id int PRIMARY KEY, v text STORAGE PLAIN, n int)")
            # One row to a page.
            session.execute(f"INSERT INTO cut SELECT n, repeat('x', 5000), 0 FROM generate_series(1, {pages}) n; CHECKPOINT")
            for _ in range(RUNS):
                self._cut()
                # The checkpoint brings them to the file system; before it they are in shared_buffers alone.
                session.execute("UPDATE cut SET n = n + 1; CHECKPOINT")
                began = time.perf_counter()
                self._cut()
                found.append(time.perf_counter() - began)
        return median(found)

    def _compute(self) -> Path:
        (compute,) = self._done("GET", "/api/v1/computes")
        return self._state / "computes" / "shop" / compute["branch"]

    def _cut(self) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(120)
            control.connect(str(self._compute() / "control.sock"))
            control.sendall(b'{"ask":"cut"}\n')
            answer = control.makefile().readline()
        if "published" not in answer:
            raise Incomplete(f"no restore point was made: {answer}")

    def wakes(self, *, cold: bool) -> list[float]:
        """Seconds from opening a connection to the first row."""
        found = []
        for number in range(WAKES):
            self.value("SELECT 1")
            directory = self._compute()
            self._done("POST", "/api/v1/computes/shop/suspend")
            if cold:
                wait_for("the branch to be gone", lambda: _removed(directory), 30)
            began = time.perf_counter()
            with self.connect() as session:
                session.execute("SELECT abalance FROM pgbench_accounts WHERE aid = %s", (1 + number * 997,)).fetchone()
            found.append(time.perf_counter() - began)
        return found

    def projects(self) -> tuple[float, float]:
        """Projects made in a second, and the bytes in the store of one."""
        self._configure(PROJECTS)
        making, finding = self._start_seconds(), self._start_seconds()
        stored = (self.place / "store" / "projects").glob("task_*")
        sizes = [sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in stored]
        if len(sizes) != PROJECTS:
            raise Incomplete(f"{len(sizes)} of {PROJECTS} projects were made")
        return PROJECTS / max(making - finding, 0.001), median(sizes)

    def _start_seconds(self) -> float:
        began = time.perf_counter()
        with self.running():
            return time.perf_counter() - began

    def remove(self) -> None:
        for folder in (self.place, self._state):
            shutil.rmtree(folder, ignore_errors=True)


def _removed(directory: Path) -> bool:
    """Whether its compute has let go of everything; then it is removed."""
    if directory.joinpath("data").is_mount() or directory.joinpath("control.sock").exists():
        return False
    shutil.rmtree(directory)
    return True


def _transactions(said: str) -> float:
    for line in said.splitlines():
        if line.startswith("tps = "):
            return float(line.split()[2])
    raise Incomplete(f"pgbench told no figure:\n{said}")
