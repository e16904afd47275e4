# The same commands for developers, the README and CI. `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
CI ?=
export CI

# A candidate counts only if it really runs (pyenv leaves shims that fail) and can make a virtual environment
# (Debian keeps that in a package of its own). The locks hold wheels for 3.11 to 3.14.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	if "$$p" -c '$(FITS)' >/dev/null 2>&1; then echo "$$p"; break; fi; done)

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --require-hashes --only-binary=:all: --no-deps
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header $(UPGRADE)

# Peers of the benchmark, in the versions that docs/performance.md was made with.
SMOOTH_STREAM := ai@7.0.173
DURABLE_STREAMS := @durable-streams/server@0.3.7 @durable-streams/client@0.2.6
NPM := npm install --no-save --no-audit --no-fund --loglevel error
PEERS := vllm-router==0.1.17 sglang-router==0.3.2 litellm[proxy]==1.108.7
ifndef RECORDS
RECORDS := bench-records/$(shell date +%Y%m%d-%H%M%S)
endif

.DEFAULT_GOAL := help
.PHONY: help python up install install-test test lint bench bench-peers wheel lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: install ## the whole system on this machine; flags by ARGS="--port 9000"
	@# Ctrl-C is how it is meant to end. At a terminal it gets that alone (set -m): make would call it an error.
	@if [ -t 0 ]; then set -m; fi; $(BIN)/okome up $(ARGS) || test $$? -eq 130

install: $(VENV)/runtime.stamp ## .venv with what runs, from requirements.lock

install-test: $(VENV)/test.stamp ## the same and what the tests need, from requirements-test.lock

test: install-test ## the whole suite; ARGS="tests/broker -k fence" for a part of it
ifneq ($(strip $(ARGS)),)
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m tests.suite
endif

lint: install-test ## ruff, mypy --strict and the layers, without the rest of the suite
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: install ## what a token costs beside the peers that are here, docs/performance.md written anew; ARGS="--rounds 1"
	@$(BIN)/okome bench relay --report $(RECORDS) $(ARGS)
	@$(BIN)/okome bench page $(RECORDS)/runs.jsonl --write docs/performance.md

bench-peers: $(VENV)/python.stamp ## the peers that the benchmark compares with, each in .bench/<name> (haproxy: apt-get)
	@for peer in $(PEERS); do \
		name=$${peer%%==*}; name=$${name%%[*}; \
		"$(PYTHON)" -m venv .bench/$$name && .bench/$$name/bin/python -m pip install --quiet "$$peer" || exit 1; \
	done
	@$(NPM) --prefix .bench/ai $(SMOOTH_STREAM)
	@$(NPM) --prefix .bench/durable-streams $(DURABLE_STREAMS)

wheel: install ## a wheel of all six packages in dist/
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

lock: $(VENV)/python.stamp ## both locks anew from pyproject.toml; UPGRADE=--upgrade for newer versions
	@$(PIP) install --quiet 'uv>=0.13.9,<0.14'
	@$(COMPILE) pyproject.toml --extra up --group build --output-file requirements.lock
	@$(COMPILE) pyproject.toml --extra up --group build --group test --constraint requirements.lock \
		--output-file requirements-test.lock

clean: ## remove .venv, caches and build products
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python: # says which Python it is that the rest would use
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 to 3.14 here that runs and can make a virtual environment." >&2; \
		echo "  Debian, Ubuntu:  sudo apt-get install python3 python3-venv" >&2; \
		echo "  Fedora:          sudo dnf install python3" >&2; \
		echo "  macOS:           brew install python@3.13" >&2; \
		echo "or name one:       make install PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi
	@echo "$(PYTHON)"

$(VENV)/python.stamp:
	@$(MAKE) --no-print-directory python >/dev/null
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

# The test closure holds the run-time closure, so whoever has the first lacks nothing of the second.
$(VENV)/runtime.stamp: requirements.lock pyproject.toml $(VENV)/python.stamp
	@echo "installing requirements.lock into $(VENV)" >&2
	@$(INSTALL) -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/test.stamp: requirements-test.lock $(VENV)/runtime.stamp
	@echo "installing requirements-test.lock into $(VENV)" >&2
	@$(INSTALL) -r requirements-test.lock
	@touch $@
