"""What applications in Python do, printed: COPY, pipelines, notices, notifications, cursors, two phases, cancelling.

The server comes from the environment; the argument is the name of a second database.
"""

import datetime
import decimal
import logging
import sys
import threading
import time
import uuid

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb


def show(what: str, *values: object) -> None:
    print(f"{what}:", *values)


def refused(what: str, error: psycopg.Error) -> None:
    show(what, error.sqlstate, error.diag.message_primary, error.diag.message_hint)


def types(connection: psycopg.Connection) -> None:
    values = [
        42, 2**40, decimal.Decimal("1.50"), 0.1, "tëxt", b"\x00\xff", True, None, datetime.date(2026, 1, 2),
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc), datetime.timedelta(days=1, seconds=2),
        uuid.UUID(int=7), [1, None, 3], Jsonb({"a": [1, "b"]}),
    ]
    casts = ["int", "bigint", "numeric", "float8", "text", "bytea", "bool", "text", "date", "timestamptz", "interval", "uuid", "int[]", "jsonb"]
    query = "SELECT " + ", ".join(f"%s::{cast}" for cast in casts)
    for binary in (False, True):
        show("types", binary, connection.cursor(binary=binary).execute(query, values).fetchone())


def copying(connection: psycopg.Connection) -> None:
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE py (id int PRIMARY KEY, v text, b bytea)")
    with cursor.copy("COPY py FROM STDIN") as copy:
        for number in range(3000):
            copy.write_row((number, None if number % 5 == 0 else f"row\t{number}", b"\x00" * (number % 9)))
    with cursor.copy("COPY py FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "text", "bytea"])
        for number in range(3000, 6000):
            copy.write_row((number, f"binary {number}", b"\x01"))
    connection.commit()
    show("copied", cursor.execute("SELECT count(*), count(v), sum(length(b)), md5(string_agg(py::text, '' ORDER BY id)) FROM py").fetchone())
    with cursor.copy("COPY (SELECT id, v FROM py WHERE id < 7 ORDER BY id) TO STDOUT") as copy:
        show("rows", list(copy.rows()))
    try:
        with cursor.copy("COPY py FROM STDIN") as copy:
            copy.write_row((1, "twice", b""))
    except psycopg.Error as error:
        refused("duplicate", error)
    connection.rollback()
    try:
        with cursor.copy("COPY py FROM STDIN") as copy:
            copy.write_row((99999, "given up", b""))
            raise ValueError("the client gives up")
    except ValueError as error:
        show("given up", error)
    connection.rollback()
    show("after", cursor.execute("SELECT count(*) FROM py").fetchone())


def pipelines(connection: psycopg.Connection) -> None:
    with connection.pipeline() as pipeline:
        cursors = [connection.execute("INSERT INTO py VALUES (%s, 'piped') RETURNING id", [number]) for number in range(10000, 10050)]
        pipeline.sync()
        show("piped", sum(cursor.fetchone()[0] for cursor in cursors))
    connection.commit()
    try:
        with connection.pipeline():
            connection.execute("INSERT INTO py VALUES (20000, 'before')")
            connection.execute("SELECT 1 / 0")
            connection.execute("INSERT INTO py VALUES (20001, 'behind')")
    except psycopg.Error as error:
        refused("in a pipeline", error)
    connection.rollback()
    show("after", connection.execute("SELECT count(*) FROM py WHERE id >= 20000").fetchone())
    connection.cursor().executemany("UPDATE py SET v = %s WHERE id = %s", [(f"many {n}", n) for n in range(100)])
    connection.commit()


def notices(connection: psycopg.Connection) -> None:
    connection.add_notice_handler(lambda notice: show("notice", notice.severity, notice.sqlstate, notice.message_primary))
    connection.execute("DO $$ BEGIN RAISE NOTICE 'hello %', 1; RAISE WARNING 'careful'; RAISE INFO 'so'; END $$")
    connection.execute("DROP TABLE IF EXISTS not_there")
    connection.commit()


def notifications(connection: psycopg.Connection) -> None:
    with psycopg.connect(autocommit=True) as listener:
        listener.execute("LISTEN channel")
        for payload in ("one", "two", "x" * 7000):
            connection.execute("SELECT pg_notify('channel', %s)", [payload])
        connection.commit()
        for notification in listener.notifies(timeout=60, stop_after=3):
            show("notified", notification.channel, len(notification.payload), notification.payload[:10])


def cursors(connection: psycopg.Connection) -> None:
    with connection.cursor("named", scrollable=True) as cursor:
        cursor.execute("SELECT id FROM py ORDER BY id")
        show("named", cursor.fetchmany(3), cursor.fetchone())
        cursor.scroll(100)
        show("scrolled", cursor.fetchone())
    show("streamed", sum(row[0] for row in connection.cursor().stream("SELECT id FROM py")))
    for round in range(8):
        connection.execute("SELECT v FROM py WHERE id = %s", [round], prepare=True)
    show("prepared", connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone())
    connection.commit()


def two_phases(connection: psycopg.Connection) -> None:
    connection.tpc_begin(connection.xid(1, "global", "branch"))
    connection.execute("INSERT INTO py VALUES (30000, 'two phases')")
    connection.tpc_prepare()
    with psycopg.connect(autocommit=True) as another:
        show("prepared", [(xid.format_id, xid.gtrid, xid.bqual, xid.owner) for xid in another.tpc_recover()])
    connection.tpc_commit()
    show("committed", connection.execute("SELECT v FROM py WHERE id = 30000").fetchone())
    connection.commit()


def cancelling(connection: psycopg.Connection) -> None:
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND query ~ 'pg_sleep'"

    def cancel() -> None:
        with psycopg.connect(autocommit=True) as another:
            while another.execute(sleeping, [connection.info.backend_pid]).fetchone() == (0,):
                time.sleep(0.02)
        connection.cancel_safe()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        connection.execute("SELECT pg_sleep(60)")
    except psycopg.Error as error:
        refused("cancelled", error)
    canceller.join()
    connection.rollback()
    show("goes on", connection.execute("SELECT 1").fetchone())
    connection.commit()


def ways_in(other: str) -> None:
    with psycopg.connect(dbname=other, options="-c work_mem=9MB -c search_path=pg_catalog", application_name="conformance") as connection:
        show("other", connection.execute("SELECT current_database(), current_setting('work_mem'), current_setting('search_path'), current_setting('application_name')").fetchone())
        show("parameters", [connection.info.parameter_status(name) for name in ("server_version", "server_encoding", "client_encoding", "is_superuser", "session_authorization", "DateStyle", "integer_datetimes", "standard_conforming_strings", "in_hot_standby", "default_transaction_read_only", "scram_iterations", "search_path")])
    for settings in ({"dbname": f"{other}_missing"}, {"options": "-c no_such_setting=1"}):
        try:
            psycopg.connect(**({"dbname": other} | settings)).close()
        except psycopg.OperationalError as error:
            show("not let in", sorted(settings), str(error).rsplit("FATAL:", 1)[-1].strip())
    with psycopg.connect() as one, psycopg.connect() as two:
        two.execute("SET idle_in_transaction_session_timeout = '10min'")
        two.commit()
        show("terminated", one.execute("SELECT pg_terminate_backend(%s, 10000)", [two.info.backend_pid]).fetchone())
        try:
            two.execute("SELECT 1")
        except psycopg.Error as error:
            refused("ended", error)


def main() -> None:
    # What it does with a pipeline that is broken already depends on what it has read by then.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    with psycopg.connect() as connection:
        connection.execute("CREATE SCHEMA py; SET search_path = py")
        connection.commit()
        for part in (types, copying, pipelines, notices, notifications, cursors, two_phases, cancelling):
            part(connection)
        try:
            connection.execute(sql.SQL("SELECT {}").format(sql.Identifier("no such column")))
        except psycopg.Error as error:
            refused("undefined", error)
    ways_in(sys.argv[1])


main()
