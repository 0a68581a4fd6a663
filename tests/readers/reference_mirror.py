"""Writes a mirror without Tidewater: what the comparison is tried against before it judges anything.

Each table becomes one Parquet file (by Arrow) and one version (a log entry written by hand, as the Delta protocol
describes it), from the canonical texts that Postgres gives. delta-rs' own writer cannot do it: it panics on
the statistics of dates past its calendar.
"""

import json
import os
import struct
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq

import source_sql
from type_map_compare import source_tables

_ARROW = {
    "boolean": pa.bool_(),
    "short": pa.int16(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "timestamp_ntz": pa.timestamp("us"),
    "binary": pa.binary(),
    "string": pa.string(),
}


def write(dsn, lake, database, exclude=()):
    """Mirrors every table of a database."""
    for schema, table in source_tables(dsn, exclude):
        with source_sql.connect(dsn) as connection:
            columns = source_sql.columns(connection, schema, table)
            rows = connection.execute(source_sql.rows_query(columns, schema, table)).fetchall()
        names = [source_sql.folder_name(name) for name in (database, schema, table)]
        folder = os.path.join(lake, *names)
        if os.path.exists(folder):
            folder += source_sql.name_suffix(table)
        write_table(folder, table, columns, rows)


def write_table(folder, table, columns, rows):
    """One table from rows of canonical texts."""
    cells = list(zip(*rows)) if rows else [[] for _ in columns]
    arrays = [array(texts, column.delta_type) for texts, column in zip(cells, columns)]
    os.makedirs(os.path.join(folder, "_delta_log"))
    data = os.path.join(folder, "part-0.parquet")
    pq.write_table(pa.table(arrays, names=[column.lake_name for column in columns]), data)
    fields = [
        {"name": c.lake_name, "type": _json_type(c.delta_type), "nullable": True, "metadata": {}} for c in columns
    ]
    features = ["deletionVectors", "timestampNtz"]
    actions = [
        {"commitInfo": {"timestamp": 0, "operation": "WRITE", "operationParameters": {}}},
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}},
        {
            "metaData": {
                "id": "00000000-0000-4000-8000-000000000000",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": fields}),
                "partitionColumns": [],
                "configuration": {"tidewater.source_name": table},
                "createdTime": 0,
            }
        },
        {
            "add": {
                "path": os.path.basename(data),
                "partitionValues": {},
                "size": os.path.getsize(data),
                "modificationTime": 0,
                "dataChange": True,
            }
        },
    ]
    with open(os.path.join(folder, "_delta_log", f"{0:020}.json"), "w", encoding="utf-8") as log:
        log.writelines(json.dumps(action) + "\n" for action in actions)


def array(texts, delta_type):
    """An Arrow array from canonical texts."""
    if delta_type.startswith("array<"):
        element = delta_type[len("array<") : -1]
        lists = [None if text is None else json.loads(text) for text in texts]
        elements = array([value for values in lists if values is not None for value in values], element)
        offsets, at = [0], 0
        for values in lists:
            at += len(values or [])
            offsets.append(at)
        missing = pa.array([values is None for values in lists], pa.bool_())
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), elements, mask=missing)
    if delta_type == "date":
        return _numbers(texts, pa.int32()).view(pa.date32())
    if delta_type.startswith("timestamp"):
        return _numbers(texts, pa.int64()).view(_ARROW[delta_type])
    if delta_type.startswith("decimal"):
        precision, scale = map(int, delta_type[len("decimal(") : -1].split(","))
        return pa.array([None if t is None else Decimal(t) for t in texts], pa.decimal128(precision, scale))
    if delta_type in ("float", "double"):
        return pa.array([_float(text, ">f" if delta_type == "float" else ">d") for text in texts], _ARROW[delta_type])
    if delta_type == "boolean":
        return pa.array([None if text is None else text == "t" for text in texts], pa.bool_())
    if delta_type == "binary":
        return pa.array([None if text is None else bytes.fromhex(text[2:]) for text in texts], pa.binary())
    if delta_type == "string":
        return pa.array(texts, pa.string())
    return _numbers(texts, _ARROW[delta_type])


def _numbers(texts, kind):
    return pa.array([None if text is None else int(text) for text in texts], kind)


def _float(text, width):
    if text is None:
        return None
    return float("nan") if text == "NaN" else struct.unpack(width, bytes.fromhex(text))[0]


def _json_type(delta_type):
    if delta_type.startswith("array<"):
        return {"type": "array", "elementType": _json_type(delta_type[len("array<") : -1]), "containsNull": True}
    return delta_type
