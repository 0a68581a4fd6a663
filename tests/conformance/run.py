"""Runs the same programs against two Postgres servers and compares what they print.

    run.py --stock "host=… port=… user=shop dbname=shop" --core "host=… port=… user=shop dbname=shop"
           --programs <PostgreSQL's bin> --jdbc <postgresql.jar> --keep <folder>

Both are given to libpq programs by the same environment; what a program prints must be the same text, byte for
byte, after the few replacements of `plain` (process numbers, transaction numbers, times taken). A first case that
differs is not the last one that is run: all differences are printed. Exit 0: equal. 1: not.

Every program runs under a limit. The two servers are worked on side by side.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = ["programs", "transactions", "storage", "copying", "databases", "extensions", "slots"]
# A program takes seconds; a server that hangs in one is the finding.
PROGRAM_LIMIT = 180


@dataclass(frozen=True)
class Server:
    name: str
    settings: dict[str, str]
    folder: Path
    programs: Path
    jdbc: Path
    other: "Server | None" = None
    subscriber: "Server | None" = None

    def database(self, name: str) -> str:
        """What a client calls another database of this server: through the gateway it is `project.database`."""
        home = self.settings["dbname"]
        return f"{home}.{name}" if self.name == "core" else name

    def environment(self, database: str | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        named = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        given = self.settings | ({"dbname": self.database(database)} if database else {})
        return kept | {named[key]: value for key, value in given.items()} | {
            "PGCONNECT_TIMEOUT": "60", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PGTZ": "UTC",
        }

    def run(self, *command: str | Path, database: str | None = None, stdin: str | None = None) -> str:
        """Both outputs of a program, and its exit code when that is not 0."""
        words = [str(part) for part in command]
        try:
            done = subprocess.run(
                words, cwd=self.folder, env=self.environment(database), text=True, input=stdin or "",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", timeout=PROGRAM_LIMIT, check=False,
            )
        except subprocess.TimeoutExpired as error:
            return f"{self.name}: {words} did not end within {PROGRAM_LIMIT} s\n{error.output}\n"
        return done.stdout + (f"exit code {done.returncode}\n" if done.returncode else "")

    def program(self, name: str, *arguments: str | Path, database: str | None = None) -> str:
        return self.run(self.programs / name, *arguments, database=database)

    def sql(self, text: str, database: str | None = None) -> str:
        arguments = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
        return self.run(self.programs / "psql", *arguments, database=database, stdin=text).strip()


def psql_script(name: str) -> Callable[[Server], str]:
    def case(server: Server) -> str:
        return server.program(
            "psql", "-X", "-a", "-q", "-v", "VERBOSITY=verbose", "-v", f"home={server.settings['dbname']}",
            "-v", f"other={server.database('conform')}", "-f", HERE / "scripts" / f"{name}.sql",
        )
    return case


def pgbench(server: Server) -> str:
    """The same transactions from the same seed leave the same rows, in every way of sending them."""
    said = server.program("pgbench", "-i", "-s", "1", "-q", "--foreign-keys", "--partitions=3")
    told = [line for line in said.splitlines() if not re.search(r"done in|of \d+ tuples", line)]
    for options in (["-M", "simple"], ["-M", "extended"], ["-M", "prepared"], ["-S"], ["-N", "-C"]):
        said = server.program("pgbench", "-n", "-c", "1", "-t", "60", "--random-seed=7", *options)
        told += [line for line in said.splitlines() if "processed" in line or "failed" in line or "error" in line]
    said = server.program("pgbench", "-n", "-M", "extended", "-c", "4", "-j", "2", "-t", "50", "-f", HERE / "scripts" / "pipelined.bench")
    told += [line for line in said.splitlines() if "processed" in line or "failed" in line or "error" in line]
    told.append(server.sql(
        "SELECT sum(abalance), md5(string_agg(aid || ',' || abalance, ' ' ORDER BY aid)) FROM pgbench_accounts;"
        "SELECT sum(delta), count(*) FROM pgbench_history; SELECT * FROM pgbench_tellers ORDER BY tid;"
    ))
    # Several clients at once leave their rows in an order of their own, which no dump should show.
    told.append(server.program("pgbench", "-i", "-I", "d", "-q"))
    return "\n".join(line for line in told if "done in" not in line) + "\n"


def psycopg_session(server: Server) -> str:
    return server.run(sys.executable, HERE / "psycopg_session.py", server.database("conform"))


def jdbc_session(server: Server) -> str:
    return server.run("java", "-cp", server.jdbc, HERE / "JdbcSession.java")


def received_by_tools(server: Server) -> str:
    """A tool's own slot over the replication protocol: pg_recvlogical, from its creation to a position."""
    tool = ("pg_recvlogical", f"--dbname={server.settings['dbname']}", "--slot=tool")
    told = [server.program(*tool, "--create-slot", "--plugin=test_decoding")]
    told.append(server.sql(
        "CREATE TABLE received (id int PRIMARY KEY, v text); INSERT INTO received SELECT n, 'v' || n FROM generate_series(1, 500) n;"
        "UPDATE received SET v = 'changed' WHERE id % 50 = 0; DELETE FROM received WHERE id > 495;"
    ))
    end = server.sql("SELECT pg_current_wal_flush_lsn()")
    told.append(server.program(
        *tool, "--start", "--file=-", f"--endpos={end}", "--no-loop",
        "-o", "include-xids=0", "-o", "skip-empty-xacts=1",
    ))
    let_go(server, "tool")
    told.append(server.sql(f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'tool'"))
    told.append(server.program(*tool, "--drop-slot"))
    return "\n".join(told)


def let_go(server: Server, slot: str) -> None:
    """Waits until the server has noticed that a slot's reader went."""
    deadline = time.monotonic() + PROGRAM_LIMIT
    busy = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"
    while server.sql(busy) != "0" and time.monotonic() < deadline:
        time.sleep(0.1)


def subscribed(server: Server) -> str:
    """Postgres's own subscriber (a database of the stock server) follows a publication here."""
    subscriber = server.subscriber
    assert subscriber is not None
    server.sql(
        "CREATE TABLE followed (id int PRIMARY KEY, v text, n numeric);"
        "INSERT INTO followed SELECT n, md5(n::text), n / 3.0 FROM generate_series(1, 3000) n;"
        "CREATE PUBLICATION followers FOR TABLE followed;"
        "SELECT pg_create_logical_replication_slot('followers', 'pgoutput')"
    )
    database = f"following_{server.name}"
    told = [subscriber.sql(f"CREATE DATABASE {database}")]
    given = " ".join(f"{key}={value}" for key, value in server.settings.items())
    told.append(subscriber.sql(
        "CREATE TABLE followed (id int PRIMARY KEY, v text, n numeric);"
        f"CREATE SUBSCRIPTION following CONNECTION '{given}' PUBLICATION followers"
        " WITH (create_slot = false, slot_name = 'followers', streaming = parallel)",
        database,
    ))
    server.sql("UPDATE followed SET v = 'changed' WHERE id % 7 = 0; DELETE FROM followed WHERE id % 11 = 0; INSERT INTO followed VALUES (9999, 'last', NULL)")
    rows = "SELECT count(*), md5(string_agg(followed::text, ',' ORDER BY id)) FROM followed"
    wanted = server.sql(rows)
    deadline = time.monotonic() + PROGRAM_LIMIT
    while (found := subscriber.sql(rows, database)) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    told += [wanted, found]
    told.append(subscriber.sql("ALTER SUBSCRIPTION following DISABLE; ALTER SUBSCRIPTION following SET (slot_name = NONE); DROP SUBSCRIPTION following", database))
    let_go(server, "followers")
    told.append(server.sql("SELECT pg_drop_replication_slot('followers')"))
    return "\n".join(told) + "\n"


def dumped(server: Server) -> str:
    """Everything the cases before have left, as pg_dump tells it."""
    return server.program("pg_dump", "--no-sync")


def restored(server: Server) -> str:
    """A custom-format dump of the other server, restored here, dumps as the other does."""
    assert server.other is not None
    dump = server.folder / "other.dump"
    told = [server.other.program("pg_dump", "--format=custom", "--no-sync", "--file", dump)]
    told.append(server.sql("CREATE DATABASE restored"))
    told.append(server.program(
        "pg_restore", "--jobs=2", "--no-publications", "--no-comments", "--exit-on-error", "--dbname", server.database("restored"), dump))
    told.append(server.program("pg_dump", "--no-sync", "--no-publications", "--no-comments", database="restored"))
    return "\n".join(told)


def analysed(server: Server) -> str:
    """The maintenance programs, which connect to every database that they find."""
    told = [server.program("vacuumdb", "--analyze-in-stages", "--quiet"), server.program("reindexdb", "--quiet", "--concurrently")]
    told += [server.program("vacuumdb", "--full", "--quiet"), server.program("clusterdb", "--quiet")]
    told.append(server.program("pg_isready", "--quiet"))
    return "".join(told)


# Each pair runs on both servers at the same time; the order is that of the list.
CASES: list[tuple[str, Callable[[Server], str]]] = [
    *((f"psql {name}", psql_script(name)) for name in SCRIPTS),
    ("pgbench", pgbench),
    ("psycopg", psycopg_session),
    ("jdbc", jdbc_session),
    ("pg_recvlogical", received_by_tools),
    ("a subscription", subscribed),
    ("vacuumdb and the like", analysed),
    ("pg_dump", dumped),
    ("pg_restore", restored),
]


def plain(text: str, server: Server) -> str:
    """What may differ between two servers that are the same."""
    replacements = [
        (rf"\b{re.escape(server.settings['dbname'])}\.(?=conform|restored)", ""),
        (r"(server process with PID) \d+", r"\1 N"),
        (r"\\(un)?restrict \w+", r"\\\1restrict X"),
        (re.escape(str(server.folder)), "FOLDER"),
    ]
    for pattern, replacement in replacements:
        text = re.sub(pattern, replacement, text)
    return text


def parsed(description: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in description.split())


def main() -> int:
    options = argparse.ArgumentParser()
    for name in ("--stock", "--core", "--subscriber", "--programs", "--jdbc", "--keep"):
        options.add_argument(name, required=True)
    options.add_argument("--only", action="append", help="a case, by its name; several times for several")
    given = options.parse_args()
    servers = {}
    for name in ("stock", "core", "subscriber"):
        folder = Path(given.keep, name)
        folder.mkdir(parents=True, exist_ok=True)
        servers[name] = Server(name, parsed(getattr(given, name)), folder, Path(given.programs), Path(given.jdbc))
    both = [
        replace(servers[one], other=servers[two], subscriber=servers["subscriber"])
        for one, two in (("stock", "core"), ("core", "stock"))
    ]
    different = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, case in CASES:
            if given.only and name not in given.only:
                continue
            started = time.monotonic()
            texts = list(pool.map(lambda server: plain(case(server), server), both))
            for server, text in zip(both, texts, strict=True):
                (server.folder / f"{name}.out").write_text(text)
            lines = list(difflib.unified_diff(*(text.splitlines() for text in texts), "stock", "core", lineterm="", n=2))
            print(f"{name}: {'different' if lines else 'equal'}, {len(texts[0].splitlines())} lines, {time.monotonic() - started:.1f} s", flush=True)
            if lines:
                different.append(name)
                print("\n".join(lines[:200]), flush=True)
    print(f"{len(different)} of {len(CASES)} differ" + (f": {', '.join(different)}" if different else ""))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
