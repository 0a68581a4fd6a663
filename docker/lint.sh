#!/usr/bin/env bash
# Checks docker/ as far as that goes without a Docker engine: hadolint reads the Dockerfile, check_compose.py the
# compose file and the configuration that it mounts. Needs what tests/readers/setup.sh installs.
# With a `docker compose` client at hand, Compose's own reading is asked too.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
tools="$here/../.venv/bin"
if [[ ! -x "$tools/hadolint" ]]; then
    echo "docker/lint.sh: hadolint is not installed: run tests/readers/setup.sh" >&2
    exit 1
fi

"$tools/hadolint" --failure-threshold style "$here/Dockerfile"
"$tools/python" "$here/check_compose.py"
if docker compose version >/dev/null 2>&1; then
    docker compose --env-file "$here/.env.example" -f "$here/compose.yaml" --profile spark config --quiet
fi
echo "docker/lint.sh: no findings"
