"""The log of a Delta table on the local disk, read as plain files: what a version did, and when it appeared."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from processes import wait_for


@dataclass(frozen=True)
class Version:
    """One commit."""

    number: int
    appeared: float
    actions: list[dict] = field(repr=False)

    def _of(self, kind: str) -> list[dict]:
        return [action[kind] for action in self.actions if kind in action]

    @property
    def position(self) -> int | None:
        """The LSN up to which it holds everything."""
        return next((txn["version"] for txn in self._of("txn")), None)

    @property
    def app_id(self) -> str | None:
        return next((txn["appId"] for txn in self._of("txn")), None)

    @property
    def is_load(self) -> bool:
        """Whether it holds the table as a snapshot had it, rather than changes."""
        return any(info.get("tidewater") == "LOAD" for info in self._of("commitInfo"))

    @property
    def is_stream(self) -> bool:
        """Whether it holds changes of the stream."""
        return any(info.get("tidewater") == "STREAM" for info in self._of("commitInfo"))

    @property
    def is_compaction(self) -> bool:
        """Whether it holds the same rows in other files."""
        return any(info.get("operation") == "OPTIMIZE" for info in self._of("commitInfo"))

    @property
    def files_more(self) -> int:
        """By how many live data files it has more than the version before."""
        return len(self._of("add")) - len(self._of("remove"))

    @cached_property
    def rewritten(self) -> list[str]:
        """Data files that were removed, other than to come back in the same commit with a deletion vector."""
        masked = {add["path"] for add in self._of("add") if add.get("deletionVector")}
        return [remove["path"] for remove in self._of("remove") if remove["path"] not in masked]

    @cached_property
    def rows_written(self) -> int:
        """Rows in the data files that are new."""
        known = {remove["path"] for remove in self._of("remove")}
        return sum(json.loads(add["stats"])["numRecords"] for add in self._of("add") if add["path"] not in known)


class DeltaLog:
    """The log of the table in a folder, which may not exist yet."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self._folder = table / "_delta_log"

    def path(self, number: int) -> Path:
        return self._folder / f"{number:020}.json"

    def last(self) -> int:
        """The newest version; -1 without any."""
        names = (path.stem for path in self._folder.glob("*.json"))
        return max((int(name) for name in names if name.isdecimal()), default=-1)

    def next_of_stream(self, after: int, limit: float) -> int:
        """The next version that holds changes, once it is there; compactions in between are passed over."""
        number = after
        while True:
            number += 1
            wait_for(f"version {number}", self.path(number).exists, limit, pause=0.001)
            if self.version(number).is_stream:
                return number

    def version(self, number: int) -> Version:
        path = self.path(number)
        actions = [json.loads(line) for line in path.read_text().splitlines() if line]
        # The file is complete before it gets its name, so its own time is when the commit was written.
        return Version(number=number, appeared=path.stat().st_mtime, actions=actions)
