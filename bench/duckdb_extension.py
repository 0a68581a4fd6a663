"""Loads a DuckDB extension from its Python package: nothing is fetched while a benchmark runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import duckdb

from measurement import Incomplete


def load_extension(session: duckdb.DuckDBPyConnection, name: str) -> None:
    try:
        package = importlib.import_module(f"duckdb_extension_{name}")
    except ModuleNotFoundError:
        raise Incomplete(f"DuckDB's extension {name} is not installed: install bench/requirements.txt") from None
    found = list(Path(package.__file__).parent.glob(f"extensions/*/{name}.duckdb_extension"))
    if len(found) != 1:
        raise Incomplete(f"the package of DuckDB's extension {name} holds {len(found)} extensions")
    session.execute(f"LOAD '{found[0]}'")
