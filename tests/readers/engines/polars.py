"""Polars: delta-rs's reading of the log, Polars' own Parquet reader and deletion vectors."""

from . import deltalake as delta_rs


def _scan(location):
    import polars

    return polars.scan_delta(
        location.path, version=location.version, storage_options=delta_rs.store_options(location) or None
    )


def batches(location, columns):
    import polars

    frame = _scan(location)
    if columns is not None:
        frame = frame.select([polars.col(name) for name in columns])
    yield from frame.collect().to_arrow().to_batches()


def count(location):
    import polars

    return _scan(location).select(polars.len()).collect().item()


def schema(location):
    return [[name, str(kind)] for name, kind in _scan(location).collect_schema().items()]


def versions(location):
    return delta_rs.versions(location)
