"""A process of its own: opens Delta tables one after the other with one engine and says how long each took.

cold_open.py ENGINE ANSWER TABLE…
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

QUERY = "SELECT count(*), sum(quantity) FROM"


def opener(engine: str) -> Callable[[str], object]:
    """What reads a table by its path."""
    if engine == "duckdb":
        import duckdb

        from duckdb_extension import load_extension

        session = duckdb.connect(config={"autoinstall_known_extensions": "false"})
        load_extension(session, "delta")
        return lambda path: session.execute(f"{QUERY} delta_scan('{path}')").fetchone()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "readers"))
    from engines.spark import session as spark_session

    spark = spark_session()
    return lambda path: spark.sql(f"{QUERY} delta.`{path}`").collect()


def main(engine: str, answer: str, *tables: str) -> None:
    read = opener(engine)
    seconds = []
    for table in tables:
        began = time.monotonic()
        read(table)
        seconds.append(time.monotonic() - began)
    Path(answer).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
