# Everything starts here, on a machine with Python 3.11 or newer, pip and make.
#   make demo    the main job: survey this machine's standard library with a team of agents, killed and resumed
#   make test    every test, with private servers of PostgreSQL, Redis and NATS that pip brings; a missing one fails
#   make stores  the table of all stores, and how many promises each keeps
#   make check   lint, types, import directions, sync/async parity
#   make bench   the table and plot of docs/benchmarks
#   make soak    the long attacks (an hour)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
JOBS   ?= auto

.PHONY: demo test stores check bench soak clean
.DEFAULT_GOAL := test

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quire needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[rich]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev,bench]'
	@touch $@ $(VENV)/.run $(VENV)/.dev

demo: $(VENV)/.run
	$(BIN)/quire demo

test: $(VENV)/.dev
	QUIRE_REQUIRE_SERVERS=1 $(BIN)/python -m pytest -n $(JOBS) -m 'not soak'

stores: $(VENV)/.dev
	$(BIN)/python tests/stores.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -p no:cacheprovider tests/test_imports.py tests/test_parity.py

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

soak: $(VENV)/.dev
	QUIRE_REQUIRE_SERVERS=1 $(BIN)/python -m pytest -n $(JOBS) -m soak --timeout 7200

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis demo-out
