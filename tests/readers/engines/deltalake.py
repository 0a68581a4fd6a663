"""delta-rs through its Python package: its log, its DataFusion scan, its deletion vectors.

The released package, not the crate our writer builds on: a reader that we did not compile.
"""


def store_options(location):
    """The options of the store, with what a local S3 server needs said in delta-rs's words."""
    options = dict(location.storage_options)
    endpoint = next((options[key] for key in ("endpoint", "aws_endpoint", "AWS_ENDPOINT_URL") if key in options), "")
    if endpoint.startswith("http://"):
        options.setdefault("allow_http", "true")
    return options


def _table(location):
    from deltalake import DeltaTable

    return DeltaTable(location.path, version=location.version, storage_options=store_options(location) or None)


def _query(location, select):
    import pyarrow
    from deltalake import QueryBuilder

    found = QueryBuilder().register("lake_table", _table(location)).execute(f"SELECT {select} FROM lake_table")
    return pyarrow.RecordBatchReader.from_stream(found)


def batches(location, columns):
    select = "*" if columns is None else ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    yield from _query(location, select)


def count(location):
    return _query(location, "count(*) AS n").read_all().column(0)[0].as_py()


def schema(location):
    return [[field.name, _delta_name(field.type)] for field in _table(location).schema().fields]


def _delta_name(kind):
    return f"array<{_delta_name(kind.element_type)}>" if kind.type == "array" else str(kind.type)


def versions(location):
    return [
        {"version": entry["version"], "timestamp_ms": entry.get("timestamp"), "operation": entry.get("operation")}
        for entry in _table(location).history()
    ]


def files(location):
    return len(_table(location).file_uris())


def maintain(location, task):
    if task != "checkpoint":
        from . import NotOffered

        raise NotOffered(f"delta-rs does no {task} on tables with deletion vectors")
    _table(location).create_checkpoint()
