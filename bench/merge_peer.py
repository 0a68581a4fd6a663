"""delta-rs' side of the upserts, in a process of its own, so that its memory is its own.

merge_peer.py create DSN TABLE FOLDER
merge_peer.py merge FOLDER CHANGES ANSWER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import duckdb
import pyarrow.parquet
from deltalake import DeltaTable, convert_to_deltalake

from duckdb_extension import load_extension


def create(dsn: str, table: str, folder: str) -> None:
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as session:
        load_extension(session, "postgres_scanner")
        session.execute("SET preserve_insertion_order = false")
        session.execute(f"ATTACH '{dsn}' AS source (TYPE postgres, READ_ONLY)")
        session.execute(
            f"COPY (FROM source.public.{table}) TO '{folder}' "
            "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, FILE_SIZE_BYTES '128MiB')"
        )
    convert_to_deltalake(folder)


def merge(folder: str, changes: str, answer: str) -> None:
    table = DeltaTable(folder)
    changed = pyarrow.parquet.read_table(changes)
    began = time.monotonic()
    metrics = (
        table.merge(changed, predicate="target.id = source.id", source_alias="source", target_alias="target")
        .when_matched_update_all()
        .execute()
    )
    seconds = time.monotonic() - began
    Path(answer).write_text(json.dumps({"seconds": seconds, "updated": metrics["num_target_rows_updated"]}))


if __name__ == "__main__":
    {"create": create, "merge": merge}[sys.argv[1]](*sys.argv[2:])
