# Tidewater: everything a checkout can do.
#
# Needs Rust (the pinned toolchain is fetched by rustup), Python 3.10 or newer, a JDK 17 or newer, Maven
# and a C compiler. `make setup` brings the rest, a PostgreSQL 18 included, into .venv and .tools.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# PostgreSQL as `make setup` placed it. Name another one in the environment to use that.
TIDEWATER_POSTGRES_BIN ?= $(CURDIR)/.tools/postgres/bin
export TIDEWATER_POSTGRES_BIN

CARGO ?= cargo
PYTHON := $(CURDIR)/.venv/bin/python

.PHONY: help
help: ## what each target does
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | while IFS=$$'\t' read -r name text; do \
	    printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: tools
tools: # the two that no script of ours checks
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust through https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "cc is missing: install a C compiler (Debian: build-essential)" >&2; exit 1; }

.PHONY: readers
readers: ## installs Spark, DuckDB, Polars, delta-rs and PostgreSQL 18; quick when already done
	@tests/readers/setup.sh

.PHONY: setup
setup: tools readers ## everything a fresh machine needs; quick when already done
	@$(PYTHON) tests/place_postgres.py
	@$(PYTHON) tests/old_postgres.py 17
	@tests/conformance/setup.sh
	@$(CARGO) fetch --locked --quiet

.PHONY: build
build: tools ## the binary, target/debug/tidewater
	$(CARGO) build --locked --package tidewater

.PHONY: demo
demo: setup ## the tour: load, sync, query, travel
	$(CARGO) run --locked --quiet --package tidewater -- demo

.PHONY: lint
lint: tools ## formatting and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# A suite that hangs is a suite that failed: it is ended after this many seconds, and cargo names it. The others
# are run all the same, so that one run shows everything that is wrong.
SUITE_LIMIT := 2400

# Binaries and tests are built by one command, so that the end-to-end tests find the binary of these
# sources beside them.
.PHONY: test
test: setup lint ## lint, the tests of every crate, and end to end with real Postgres and real readers
	$(CARGO) build --workspace --bins --tests --locked
	$(CARGO) test --workspace --locked --no-fail-fast --config 'target."cfg(unix)".runner = ["timeout", "--foreground", "$(SUITE_LIMIT)"]'
	@echo "make test: all passed"

.PHONY: public-tables
public-tables: setup ## fetches the Delta tables that delta-rs tests with, and reads them beside Spark
	$(PYTHON) tests/readers/public_tables.py .tools/public-tables
	TIDEWATER_PUBLIC_TABLES=1 ROW_CHANGES_CASE=none $(CARGO) test --workspace --locked --test row_changes -- --nocapture

# Of the end-to-end tests, those in which a source is read, changed and broken. Built-in databases begin with 17.
OLD_SOURCES := changed_while_loaded consistent_points crashes dead_letters first_load history:: keyless mending mirror \
               partitions schema_changes serving:: streaming table_changes type_map

.PHONY: old-postgres
old-postgres: setup ## PostgreSQL 14 to 17 as sources, and 17 as the built-in one; half an hour
	$(PYTHON) tests/old_postgres.py 14 15 16 17
	$(CARGO) build --workspace --bins --tests --locked
	for major in 14 15 16 17; do \
	    export TIDEWATER_POSTGRES_MAJOR=$$major TIDEWATER_POSTGRES_BIN=$(CURDIR)/.tools/postgres-$$major/bin; \
	    echo "old-postgres: PostgreSQL $$major"; \
	    $(CARGO) test --workspace --locked --test live; \
	    $(CARGO) test --workspace --locked --test e2e -- $(OLD_SOURCES); \
	done
	TIDEWATER_POSTGRES_MAJOR=17 TIDEWATER_POSTGRES_BIN=$(CURDIR)/.tools/postgres-17/bin \
	    $(CARGO) test --workspace --locked --test computes

MINUTES ?= 10

.PHONY: oracle
oracle: setup ## crashes and faults from seeds for MINUTES=10; totals go to bench/ORACLE.md
	$(CARGO) build --workspace --bins --tests --locked
	target/debug/oracle --minutes $(MINUTES) --report bench/ORACLE.md

ROUNDS ?= 200
SEED ?= 1

.PHONY: soak
soak: setup ## ROUNDS=200 of kills and losses of SEED=1 against the built-in Postgres, on a folder, S3 and three keepers
	$(CARGO) build --workspace --bins --tests --locked
	target/debug/soak --seed $(SEED) --rounds $$(($(ROUNDS) * 6 / 10)) --storage folder
	target/debug/soak --seed $(SEED) --rounds $$(($(ROUNDS) * 2 / 10)) --storage bucket
	target/debug/soak --seed $(SEED) --rounds $$(($(ROUNDS) * 2 / 10)) --storage three-keepers

.PHONY: bench
bench: bench-setup ## speed beside its peers, at most a quarter of an hour; writes bench/REPORT.md
	$(PYTHON) bench/run.py --report bench/REPORT.md

.PHONY: bench-full
bench-full: bench-setup ## the same with larger tables, two hours
	$(PYTHON) bench/run.py --full --report bench/REPORT.md

.PHONY: bench-setup
bench-setup: setup
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -r bench/requirements.txt
	$(CARGO) build --locked --release --package tidewater

.PHONY: clean
clean: ## removes what was built and installed
	@if [[ -x $(PYTHON) ]]; then $(PYTHON) tests/place_postgres.py --remove; fi
	rm -rf .venv .tools
	$(CARGO) clean
