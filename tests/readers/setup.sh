#!/usr/bin/env bash
# Installs the real readers: a Python environment in .venv and Spark's Delta jars in .tools/jars,
# both at the root of the repository and ignored by git.
#
# Run it as often as you like. What it installs is decided by three files (this one, requirements.txt
# and pom.xml); their hash is kept in .tools/readers.stamp, and when it still fits there is nothing to do.
# Needs python3 (3.10 or newer, with venv), Java 17 or newer, and mvn.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
venv="$root/.venv"
jars="$root/.tools/jars"
stamp="$root/.tools/readers.stamp"

say() { printf 'readers: %s\n' "$*"; }
fail() { printf 'readers: %s\n' "$*" >&2; exit 1; }

# The environment's place is part of the hash: a virtual environment does not survive being moved.
inputs="$(cat "$here/setup.sh" "$here/requirements.txt" "$here/pom.xml" | sha256sum | cut -d' ' -f1) $root"
if [[ -f "$stamp" && "$(cat "$stamp")" == "$inputs" && -x "$venv/bin/python" ]]; then
    say "up to date"
    exit 0
fi

command -v python3 >/dev/null || fail "python3 is missing: install Python 3.10 or newer"
command -v java >/dev/null || fail "java is missing: install a JDK or JRE 17 or newer (Spark runs on it)"
command -v mvn >/dev/null || fail "mvn is missing: install Maven (it fetches Spark's Delta jars)"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "python3 is older than 3.10"
python3 -c 'import venv, ensurepip' 2>/dev/null || fail "python3 has no venv module: install it (Debian: python3-venv)"

mkdir -p "$root/.tools"

# One set-up at a time: two test runs started together would install over each other.
exec 9>"$root/.tools/readers.lock"
flock 9
if [[ -f "$stamp" && "$(cat "$stamp")" == "$inputs" && -x "$venv/bin/python" ]]; then
    say "up to date"
    exit 0
fi
rm -f "$stamp"

say "installing the Python environment into .venv (a minute or two)"
# --clear: an environment made by another Python, or moved here, is replaced rather than mended.
python3 -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"
"$venv/bin/python" -m pip check --disable-pip-version-check >/dev/null \
    || fail "requirements.txt does not list everything its packages need: $("$venv/bin/python" -m pip check)"

say "fetching Spark's Delta jars into .tools/jars"
rm -rf "$jars"
mkdir -p "$jars"
mvn --quiet --batch-mode --file "$here/pom.xml" dependency:copy-dependencies -Djars="$jars"
ls "$jars"/delta-spark_*.jar >/dev/null 2>&1 || fail "mvn brought no delta-spark jar"

printf '%s' "$inputs" >"$stamp"
say "done"
