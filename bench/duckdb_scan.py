"""A process of its own, so that its memory is its own: DuckDB copies a Postgres table to a Parquet file.

duckdb_scan.py DSN TABLE TARGET THREADS ANSWER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import duckdb

from duckdb_extension import load_extension


def main(dsn: str, table: str, target: str, threads: str, answer: str) -> None:
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as session:
        load_extension(session, "postgres_scanner")
        session.execute(f"SET threads = {int(threads)}")
        session.execute("SET preserve_insertion_order = false")
        session.execute(f"ATTACH '{dsn}' AS source (TYPE postgres, READ_ONLY)")
        began = time.monotonic()
        session.execute(
            f"COPY (FROM source.public.{table}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
        )
        seconds = time.monotonic() - began
    Path(answer).write_text(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
