"""The stock readers. Each module here is one engine behind the same four functions.

    batches(location, columns)   -> iterator of Arrow record batches, in the engine's own order
    count(location)              -> what the engine itself counts
    schema(location)             -> [[column, the engine's own name of its type], ...]
    versions(location)           -> [{"version", "timestamp_ms", "operation"}, ...], newest first

`location` says which table: a path or URI, a version or None for the newest, and options of the store. None of
them shares code with our writer, and none is told anything about a table but where it lies.
"""

from dataclasses import dataclass, field


class NotOffered(Exception):
    """The engine has no way to answer this operation; not a fault of the table."""


@dataclass(frozen=True)
class Location:
    path: str
    version: int | None = None
    storage_options: dict = field(default_factory=dict)
