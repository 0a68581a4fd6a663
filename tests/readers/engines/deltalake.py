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


def run(location, statements):
    """Runs what delta-rs offers as methods, one `{method: argument}` after the other.

    Rows are given as a SELECT that DuckDB answers: `{"overwrite": SELECT, "configuration": {…}}`, `{"append": SELECT}`,
    `{"merge": SELECT, "on": "t.id = s.id"}` (a row with `gone` set is deleted). The others are `{"update": {column:
    expression}, "where": …}`, `{"delete": condition}`, `{"optimize": null}`, `{"z_order": [column]}`, `{"restore":
    version}`, `{"vacuum": null}` and `{"properties": {…}}`.
    """
    for statement in statements:
        _step(location, statement)


def _step(location, step):
    from deltalake import write_deltalake

    options = store_options(location) or None
    (method, argument), *others = step.items()
    others = dict(others)
    if method in ("overwrite", "append"):
        write_deltalake(
            location.path, _selected(argument), mode=method, storage_options=options,
            configuration=others.get("configuration"), schema_mode="merge" if method == "append" else "overwrite",
        )  # fmt: skip
        return
    table = _table(location)
    if method == "merge":
        source = _selected(argument)
        columns = {name: f"s.{name}" for name in source.schema.names if name != "gone"}
        merge = table.merge(source, others["on"], source_alias="s", target_alias="t")
        merge = merge.when_matched_delete("s.gone").when_matched_update(columns)
        merge.when_not_matched_insert(columns).execute()
    elif method == "update":
        table.update(updates=argument, predicate=others.get("where"))
    elif method == "delete":
        table.delete(argument)
    elif method == "optimize":
        table.optimize.compact()
    elif method == "z_order":
        table.optimize.z_order(argument)
    elif method == "restore":
        table.restore(argument)
    elif method == "vacuum":
        table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    elif method == "properties":
        table.alter.set_table_properties(argument)
    else:
        raise ValueError(f"{method} is no step")


def _selected(select):
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(select).to_arrow_table()
