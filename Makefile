# `make help` lists the targets. The first use of any of them makes .venv from setup.cfg.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MINUTES ?= 10
# How many tests run at a time: one for each core of the smallest machine they are meant for.
JOBS ?= 2

.PHONY: help demo test check lint format bench soak shell clean
help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 10

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "pegaskv needs Python 3.11 or 3.12; say make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## run the main job on real data and compare every row
	$(BIN)/python -m tools.demo

test: $(STAMP)  ## all tests; DEBUG=1 adds asyncio's debug mode; JOBS=n at a time
	$(BIN)/python $(if $(DEBUG),-X dev -W error) -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

lint: $(STAMP)  ## format check, lint, types, import rule, tidy
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.tidy

check: lint test  ## all that must hold before a commit

format: $(STAMP)  ## format the code and mend what the linter can
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format --quiet .

bench: $(STAMP)  ## measure beside peers; ONLY=name, SECONDS=n, ROUNDS=n, JSON=file, DOCUMENT=1
	$(BIN)/python -m tools.bench $(ONLY) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(JSON),--json $(JSON)) $(if $(DOCUMENT),--document)

soak: $(STAMP)  ## long suites: many seeds, many crashes; MINUTES=n
	PEGASKV_SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest -q -m soak --timeout=0 -o faulthandler_timeout=0

shell: $(STAMP)  ## the admin shell on 127.0.0.1:34601
	$(BIN)/pegaskv-shell

clean:  ## remove what the targets made
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
