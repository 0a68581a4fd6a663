#!/usr/bin/env python
"""Stock Delta readers behind one pipe: JSON lines in, JSON lines out.

A long-lived process, so that Spark's JVM starts once per test run and not once per question. Start it with
`.venv/bin/python tests/readers/reader_server.py` (after `setup.sh`), write one request a line, read one answer a
line, in the same order. End of input ends it, and Spark with it. What the engines print goes to stderr.

Requests to a reader (`engine`: spark, duckdb, polars, deltalake; `path`: a folder or s3:// URI; `version`: absent
or null is the newest; `storage_options`: delta-rs's names, such as endpoint, access_key_id):

    {"id":1,"engine":"spark","op":"rows","path":P,"version":3,"columns":["id","v"],"order_by":["id"]}
       -> {"id":1,"columns":["id","v"],"kinds":["other","float8"],"rows":[["1","0.5"],["2",null]]}
    {"id":2,"engine":"duckdb","op":"checksum","path":P,"columns":[…]}  -> {"id":2,"columns":[…],"count":2,"checksum":"123"}
    {"id":3,"engine":"polars","op":"count","path":P}                   -> {"id":3,"count":2}
    {"id":4,"engine":"spark","op":"schema","path":P}                   -> {"id":4,"columns":[["id","bigint"],…]}
    {"id":4,"engine":"spark","op":"query","path":P,"query":"SELECT id FROM t"}         -> as rows; spark and duckdb only
    {"id":5,"engine":"spark","op":"versions","path":P}  -> {"id":5,"versions":[{"version":1,"timestamp_ms":…,"operation":…},…]}
    {"id":9,"engine":"deltalake","op":"files","path":P}                -> {"id":9,"count":3}   live data files

A request that writes, for what happens to a mirror when others work on it (`task`: optimize, vacuum, checkpoint, append;
append adds a row that is there already, once more):

    {"id":10,"engine":"spark","op":"maintain","path":P,"task":"optimize"}  -> {"id":10}

One that makes a table, or changes it, by statements of the engine's own SQL in which the table is called {t} (spark, and
duckdb for appending to a table that is there), or by delta-rs's methods (see `engines/deltalake.py`). And one that
reads the rows of an Arrow IPC file, for a reader of ours that is to be compared with the stock ones:

    {"id":11,"engine":"spark","op":"run","path":P,"statements":["CREATE TABLE {t} …","INSERT INTO {t} …"]}  -> {"id":11}
    {"id":11,"engine":"deltalake","op":"run","path":P,"statements":[{"overwrite":"SELECT …"},{"delete":"id = 1"}]}    -> {"id":11}
    {"id":12,"op":"ipc_rows","path":F}  -> as rows

Requests to Postgres, answered with the same texts and figures (columns named and chosen as in the lake):

    {"id":6,"op":"source_rows","dsn":D,"schema":"public","table":"t","order_by":["id"]}   -> as rows
    {"id":7,"op":"source_checksum","dsn":D,"schema":"public","table":"t"}                 -> as checksum
    {"id":8,"op":"source_sql","dsn":D,"schema":"public","table":"t"} -> {"id":8,"rows":"SELECT …","checksum":"SELECT …"}

Cells are canonical texts (`canonical_text.py`), floats as shortest digits in `rows` and by their bits in a checksum.
Rows come sorted by the texts of `order_by` and then of all columns, nulls first; so equal tables give equal lists.
Without `columns`, all of them in the table's order.

What goes wrong is an answer too: {"id":1,"error":"…","kind":"not_offered|failed|bad_request|timed_out"}. When an
engine cannot read some columns of a table, `rows` still answers, with `"unreadable":{"column":"why"}` and the
text `!unreadable` in their cells: one column that an engine misses must not hide what it reads in the others.
Other fields: `timeout_seconds` (300), `limit` (1000000 rows; a larger table is an error: use checksum).
"""

import importlib
import json
import os
import signal
import sys

import pyarrow.ipc

from canonical_text import Checksum, readable, readable_kind, texts
from engines import Location, NotOffered
import source_sql

ENGINES = ("spark", "duckdb", "polars", "deltalake")
UNREADABLE = "!unreadable"
DEFAULT_LIMIT = 1_000_000
DEFAULT_TIMEOUT_SECONDS = 300
# A request is a few names and a path; more than this is a mistake of the caller.
LONGEST_REQUEST_BYTES = 1 << 20
LONGEST_ERROR_CHARACTERS = 2_000
# Rows fetched from Postgres at a time.
FETCH_ROWS = 10_000


class BadRequest(Exception):
    """The request says something that cannot be answered."""


class TimedOut(Exception):
    """The request's time is over."""


def engine(request):
    name = request.get("engine")
    if name not in ENGINES:
        raise BadRequest(f"engine is {name!r}; expected one of {', '.join(ENGINES)}")
    return importlib.import_module(f"engines.{name}")


def location(request):
    if not isinstance(request.get("path"), str):
        raise BadRequest("path is missing: the folder or URI of a Delta table")
    return Location(request["path"], request.get("version"), request.get("storage_options") or {})


def rows(request):
    reader, where, columns = engine(request), location(request), request.get("columns")
    unreadable = {}
    try:
        names, kinds, found = _read(reader, where, columns, request)
    except (NotOffered, BadRequest, TimedOut):
        raise
    except Exception as whole:
        # Column by column, to name the ones that fail. If none or all do, the table is at fault.
        names = columns if columns is not None else [column[0] for column in reader.schema(where)]
        names, kinds, found, unreadable = _read_singly(reader, where, names, request, whole)
    answer = {"columns": names, "kinds": kinds, "rows": _sorted(found, names, request)}
    if unreadable:
        answer["unreadable"] = unreadable
    return answer


def _read(reader, where, columns, request):
    limit = request.get("limit", DEFAULT_LIMIT)
    names, kinds, found = columns, None, []
    for batch in reader.batches(where, columns):
        names = batch.schema.names
        kinds = [readable_kind(field.type) for field in batch.schema]
        if len(found) + batch.num_rows > limit:
            raise BadRequest(f"the table has more than {limit} rows: ask for its checksum, or raise limit")
        found.extend(_rows_of(batch, kinds))
    if names is None or kinds is None:
        # Not one batch: an empty table.
        names = names or [column[0] for column in reader.schema(where)]
        kinds = ["other"] * len(names)
    return list(names), kinds, found


def _rows_of(batch, kinds):
    rendered = [
        [readable(text, kind) for text in texts(column)] for column, kind in zip(batch.columns, kinds)
    ]
    return [list(row) for row in zip(*rendered)]


def _read_singly(reader, where, names, request, whole):
    if len(names) < 2:
        raise whole
    height, kinds, cells, unreadable = reader.count(where), [], [], {}
    for name in names:
        try:
            _, kind, column = _read(reader, where, [name], request)
            kinds.append(kind[0])
            cells.append([row[0] for row in column])
        except TimedOut:
            raise
        except Exception as error:
            unreadable[name] = _message(error)
            kinds.append("other")
            cells.append([UNREADABLE] * height)
    if not unreadable or len(unreadable) == len(names):
        raise whole
    if any(len(column) != height for column in cells):
        raise whole
    # The engine's scan order is the same for each column: one thread, the same files in the same order.
    return names, kinds, [list(row) for row in zip(*cells)], unreadable


def _sorted(found, names, request):
    order_by = request.get("order_by") or []
    missing = [name for name in order_by if name not in names]
    if missing:
        raise BadRequest(f"order_by names {missing[0]!r}, which is not among the columns read")
    places = [names.index(name) for name in order_by] + list(range(len(names)))
    return sorted(found, key=lambda row: [(row[at] is not None, row[at] or "") for at in places])


def checksum(request):
    reader, where, columns = engine(request), location(request), request.get("columns")
    figures, names = Checksum(), columns
    for batch in reader.batches(where, columns):
        names = batch.schema.names
        figures.add_batch([texts(column) for column in batch.columns], batch.num_rows)
    if names is None:
        names = [column[0] for column in reader.schema(where)]
    return {"columns": list(names), **figures.answer()}


def count(request):
    return {"count": engine(request).count(location(request))}


def query(request):
    """The rows of a SELECT in the engine's own SQL, in which the table is called t."""
    reader, where, text = engine(request), location(request), request.get("query")
    if not isinstance(text, str):
        raise BadRequest("query is missing: a SELECT over t")
    if not hasattr(reader, "query"):
        raise NotOffered(f"{request.get('engine')} is asked no SQL here")
    names, kinds, found = [], [], []
    for batch in reader.query(where, text):
        names, kinds = batch.schema.names, [readable_kind(field.type) for field in batch.schema]
        found.extend(_rows_of(batch, kinds))
    return {"columns": names, "kinds": kinds, "rows": _sorted(found, names, request)}


def schema(request):
    return {"columns": engine(request).schema(location(request))}


def versions(request):
    return {"versions": engine(request).versions(location(request))}


def files(request):
    return {"count": _offered(request, "files")(location(request))}


def run(request):
    _offered(request, "run")(location(request), request.get("statements") or [])
    return {}


def ipc_rows(request):
    """The rows of an Arrow IPC file, as texts: what a reader of our own read."""
    names, kinds, found = [], [], []
    with pyarrow.ipc.open_file(request.get("path")) as file:
        names, kinds = file.schema.names, [readable_kind(field.type) for field in file.schema]
        for at in range(file.num_record_batches):
            found.extend(_rows_of(file.get_batch(at), kinds))
    return {"columns": names, "kinds": kinds, "rows": _sorted(found, names, request)}


def maintain(request):
    _offered(request, "maintain")(location(request), request.get("task"))
    return {}


def _offered(request, operation):
    found = getattr(engine(request), operation, None)
    if found is None:
        raise NotOffered(f"{request.get('engine')} offers no {operation}")
    return found


def _source(request, connection):
    table = request.get("table")
    if not isinstance(table, str):
        raise BadRequest("table is missing: a table's name in Postgres, beside its schema")
    schema_name = request.get("schema", "public")
    found = source_sql.columns(connection, schema_name, table)
    if request.get("columns") is not None:
        by_name = {column.lake_name: column for column in found}
        missing = [name for name in request["columns"] if name not in by_name]
        if missing:
            raise BadRequest(f"{schema_name}.{table} has no column {missing[0]!r} under the lake's names")
        found = [by_name[name] for name in request["columns"]]
    return found, schema_name, table


def source_rows(request):
    limit = request.get("limit", DEFAULT_LIMIT)
    with source_sql.connect(_dsn(request)) as connection:
        columns, schema_name, table = _source(request, connection)
        cursor = connection.execute(source_sql.rows_query(columns, schema_name, table))
        if cursor.rowcount > limit:
            raise BadRequest(f"the table has more than {limit} rows: ask for its checksum, or raise limit")
        found = []
        while part := cursor.fetchmany(FETCH_ROWS):
            found.extend([readable(text, c.kind) for text, c in zip(row, columns)] for row in part)
    names = [column.lake_name for column in columns]
    return {"columns": names, "kinds": [c.kind for c in columns], "rows": _sorted(found, names, request)}


def source_checksum(request):
    with source_sql.connect(_dsn(request)) as connection:
        columns, schema_name, table = _source(request, connection)
        found = connection.execute(source_sql.checksum_query(columns, schema_name, table)).fetchone()
    return {"columns": [column.lake_name for column in columns], "count": found[0], "checksum": found[1]}


def source_queries(request):
    with source_sql.connect(_dsn(request)) as connection:
        source = _source(request, connection)
    return {"rows": source_sql.rows_query(*source), "checksum": source_sql.checksum_query(*source)}


def _dsn(request):
    if not isinstance(request.get("dsn"), str):
        raise BadRequest("dsn is missing: a libpq connection string")
    return request["dsn"]


OPERATIONS = {
    "rows": rows,
    "checksum": checksum,
    "count": count,
    "query": query,
    "schema": schema,
    "versions": versions,
    "files": files,
    "maintain": maintain,
    "run": run,
    "ipc_rows": ipc_rows,
    "source_rows": source_rows,
    "source_checksum": source_checksum,
    "source_sql": source_queries,
}


def answer(line):
    """The answer to one request line; never raises."""
    request = {}
    try:
        if len(line) > LONGEST_REQUEST_BYTES:
            raise BadRequest(f"a request has at most {LONGEST_REQUEST_BYTES} bytes")
        request = json.loads(line)
        if not isinstance(request, dict):
            request = {}
            raise BadRequest("a request is a JSON object")
        operation = OPERATIONS.get(request.get("op"))
        if operation is None:
            raise BadRequest(f"op is {request.get('op')!r}; expected one of {', '.join(OPERATIONS)}")
        signal.alarm(max(1, int(request.get("timeout_seconds", DEFAULT_TIMEOUT_SECONDS))))
        return {"id": request.get("id"), **operation(request)}
    except Exception as error:
        kinds = {NotOffered: "not_offered", BadRequest: "bad_request", TimedOut: "timed_out"}
        kind = kinds.get(type(error), "bad_request" if isinstance(error, json.JSONDecodeError) else "failed")
        return {"id": request.get("id"), "error": _message(error), "kind": kind}
    finally:
        signal.alarm(0)


def _message(error):
    return f"{type(error).__name__}: {error}"[:LONGEST_ERROR_CHARACTERS]


def install_alarm():
    """Lets `answer` end what takes too long; without it a late alarm would end the process."""

    def on_alarm(signum, frame):
        raise TimedOut("the engine did not answer in time; raise timeout_seconds if the table is large")

    signal.signal(signal.SIGALRM, on_alarm)


def serve():
    # The JVM and the engines' own libraries write to file descriptor 1. The protocol keeps the real one for
    # itself and points theirs at stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    install_alarm()
    for line in sys.stdin:
        if line.strip():
            out.write(json.dumps(answer(line)) + "\n")
            out.flush()


if __name__ == "__main__":
    serve()
