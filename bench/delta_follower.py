"""A reader in a process of its own: follows a Delta table and notes when it has each version.

    delta_follower.py TABLE APP_ID SIGHTINGS

Writes a line of JSON for every version it gets: when, which, and the position in its `txn`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from deltalake import DeltaTable

POLL = 0.01


def main(location: str, app_id: str, sightings: str) -> None:
    table = DeltaTable(location)
    with Path(sightings).open("w", buffering=1) as output:
        last = table.version()
        while True:
            table.update_incremental()
            if table.version() != last:
                now, last = time.time(), table.version()
                output.write(
                    json.dumps({"at": now, "version": last, "position": table.transaction_version(app_id)}) + "\n"
                )
            else:
                time.sleep(POLL)


if __name__ == "__main__":
    main(*sys.argv[1:])
