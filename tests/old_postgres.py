"""Fetches older PostgreSQL servers and links them as `.tools/postgres-17` and so on; quick when already done.

    tests/old_postgres.py 17            what `make test` needs: built-in databases run on 17 as well
    tests/old_postgres.py 14 15 16 17   what `make old-postgres` needs

They are the binaries that zonky's embedded Postgres takes from Maven Central: the server with its contrib modules, and of
the programs only `initdb`, `pg_ctl` and `postgres`. `make setup` brings the client programs, of 18.
"""

import lzma
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from place_postgres import LINK, fail, link_to, open_to_all, shared_home

VERSIONS = {"14": "14.19.0", "15": "15.14.0", "16": "16.10.0", "17": "17.6.0"}
MACHINES = {"x86_64": "linux-amd64", "aarch64": "linux-arm64v8"}
PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
FETCH_TIMEOUT = 600
# Nothing outside the folder; Pythons without the filter are older than the rule.
EXTRACTION = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def main() -> None:
    for major in sys.argv[1:]:
        if major not in VERSIONS:
            fail(f"{major} is not among {', '.join(VERSIONS)}")
        link = LINK.with_name(f"postgres-{major}")
        place = shared_home() / f"postgresql-{VERSIONS[major]}"
        if not place.is_dir():
            fetch(VERSIONS[major], place)
        link_to(place, link)
        print(f"postgres: {link / 'bin'} is ready")


def fetch(version: str, place: Path) -> None:
    """Unpacks beside the place and renames when complete: an interrupted one is never taken for a whole one."""
    machine = MACHINES.get(platform.machine())
    if machine is None:
        fail(f"there is no PostgreSQL {version} for {platform.machine()}")
    if shutil.which("mvn") is None:
        fail("mvn is missing: install Maven (it fetches the older PostgreSQL servers)")
    artifact = f"embedded-postgres-binaries-{machine}"
    staged = Path(tempfile.mkdtemp(prefix=".copy-", dir=place.parent))
    command = ["mvn", "--quiet", "--batch-mode", "-Dstyle.color=never", PLUGIN,
               f"-Dartifact=io.zonky.test.postgres:{artifact}:{version}", f"-DoutputDirectory={staged}"]
    if subprocess.run(command, stdin=subprocess.DEVNULL, timeout=FETCH_TIMEOUT, check=False).returncode != 0:
        fail(f"mvn brought no PostgreSQL {version}")
    jar = staged / f"{artifact}-{version}.jar"
    with zipfile.ZipFile(jar) as archive:
        packed = next(name for name in archive.namelist() if name.endswith(".txz"))
        with archive.open(packed) as stream, lzma.open(stream) as plain, tarfile.open(fileobj=plain) as files:
            files.extractall(staged, **EXTRACTION)
    jar.unlink()
    open_to_all(staged)
    staged.rename(place)


if __name__ == "__main__":
    main()
