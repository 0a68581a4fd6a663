#!/usr/bin/env bash
# Fetches the JDBC driver of the conformance test into .tools/jdbc. Quick when already done.
set -euo pipefail

# Without a compiler `java` says something about a missing class only in the middle of the test.
java --list-modules 2>/dev/null | grep '^jdk.compiler@' >/dev/null \
    || { echo "conformance: java has no compiler: install a JDK 17 or newer (Debian: openjdk-17-jdk-headless)" >&2; exit 1; }

version=42.7.8
place="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.tools/jdbc"
if [[ -f "$place/postgresql-$version.jar" ]]; then
    exit 0
fi

command -v mvn >/dev/null || { echo "conformance: mvn is missing: install Maven (it fetches the JDBC driver)" >&2; exit 1; }
mkdir -p "$place"
mvn --quiet --batch-mode -Dstyle.color=never org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
    -Dartifact="org.postgresql:postgresql:$version" -DoutputDirectory="$place"
[[ -f "$place/postgresql-$version.jar" ]] || { echo "conformance: mvn brought no JDBC driver" >&2; exit 1; }
