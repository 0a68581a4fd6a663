"""DuckDB with its delta extension (and httpfs for tables on S3), both loaded from local files.

Loading the extension takes a quarter of a second, most of it to check its signature, and a read some milliseconds: so one
database serves all reads, each by a connection of its own. It keeps nothing of a table from one answer to the next.
"""

import functools
import glob
import importlib
import os
from contextlib import closing, contextmanager
from urllib.parse import urlparse

from . import NotOffered

# Rows per Arrow batch: large enough to be cheap, small enough that a wide table stays in memory.
BATCH_ROWS = 65_536


def _database(extensions):
    import duckdb

    connection = duckdb.connect(config={"allow_community_extensions": "false", "autoinstall_known_extensions": "false"})
    for extension in extensions:
        connection.execute(f"LOAD {_text(_extension_file(extension))}")
    connection.execute("SET threads = 1")
    connection.execute("SET enable_external_file_cache = false")
    return connection


_kept_database = functools.cache(_database)


def _extensions(location):
    return ("delta", "httpfs") if location.path.startswith("s3://") else ("delta",)


@contextmanager
def _reading(location):
    """A connection for one read."""
    try:
        with closing(_kept_database(_extensions(location)).cursor()) as connection:
            if "httpfs" in _extensions(location):
                connection.execute(_secret(location.storage_options))
            yield connection
    except BaseException:
        # Whatever state that left behind is not for the next read.
        _kept_database.cache_clear()
        raise


def _extension_file(name):
    package = importlib.import_module(f"duckdb_extension_{name}")
    found = glob.glob(os.path.join(os.path.dirname(package.__file__), "extensions", "*", f"{name}.duckdb_extension"))
    if len(found) != 1:
        raise FileNotFoundError(f"DuckDB's extension {name} is not installed: run tests/readers/setup.sh")
    return found[0]


def _secret(options):
    """An S3 secret from the names that delta-rs uses for the same options."""
    options = {key.lower().removeprefix("aws_"): value for key, value in options.items()}
    endpoint = urlparse(options.get("endpoint") or options.get("endpoint_url") or "https://s3.amazonaws.com")
    return (
        "CREATE OR REPLACE SECRET store (TYPE s3, URL_STYLE 'path'"
        f", KEY_ID {_text(options.get('access_key_id', ''))}, SECRET {_text(options.get('secret_access_key', ''))}"
        f", REGION {_text(options.get('region', 'us-east-1'))}"
        f", ENDPOINT {_text(endpoint.netloc)}, USE_SSL {str(endpoint.scheme == 'https').lower()})"
    )


def _scan(location):
    version = "" if location.version is None else f", version => {int(location.version)}"
    return f"delta_scan({_text(location.path)}{version})"


def _text(value):
    return "'" + value.replace("'", "''") + "'"


def _name(value):
    return '"' + value.replace('"', '""') + '"'


def batches(location, columns):
    chosen = "*" if columns is None else ", ".join(_name(column) for column in columns)
    with _reading(location) as connection:
        connection.execute(f"SELECT {chosen} FROM {_scan(location)}")
        yield from connection.to_arrow_reader(BATCH_ROWS)


def query(location, text):
    with _reading(location) as connection:
        connection.execute(f"CREATE TEMP VIEW t AS SELECT * FROM {_scan(location)}")
        connection.execute(text)
        yield from connection.to_arrow_reader(BATCH_ROWS)


def count(location):
    with _reading(location) as connection:
        return connection.execute(f"SELECT count(*) FROM {_scan(location)}").fetchone()[0]


def schema(location):
    with _reading(location) as connection:
        described = connection.execute(f"DESCRIBE SELECT * FROM {_scan(location)}").fetchall()
    return [[row[0], row[1]] for row in described]


def versions(location):
    raise NotOffered("DuckDB shows no history of a Delta table")


def run(location, statements):
    """Runs statements in which the table is called {t}. The extension appends rows, and does nothing else to a table."""
    with closing(_database(_extensions(location))) as connection:
        connection.execute(f"ATTACH {_text(location.path)} AS lake_table (TYPE delta)")
        for statement in statements:
            connection.execute(statement.replace("{t}", "lake_table"))
