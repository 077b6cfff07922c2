# The README's commands. Each installs what it needs by itself and does nothing twice.
#   make demo [SEED=0] [S3=1] [STEPS=N]    the whole system on this machine
#   make sweep-demo                        an ablation sweep on this machine: regulariser depth
#   make test                              the tests; make test-slow: the ones that take minutes
#                                          (LONG_TESTS=1: also those that CI has no time for)
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SEED   ?= 0
STEPS  ?= 0
S3     ?=

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export PYTHONUNBUFFERED := 1

.PHONY: help setup demo sweep-demo test test-slow lint type bench clean

help:
	@sed -n '1,4p' Makefile; echo "#   make setup | lint | type | bench | clean"

setup: $(STAMP)

# Anew when the requirements or the pins change; an interrupted install leaves no stamp.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $$($(PYTHON) --version) is not Python 3.11 to 3.13; try make PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing into $(VENV); torch alone is several GB, which takes some minutes"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python jobs/demo.py --seed $(SEED) --steps $(STEPS) $(if $(S3),--s3 true)

sweep-demo: $(STAMP)
	$(BIN)/python jobs/sweep_demo.py --seed $(SEED)

# In two processes, a file at a time: many tests wait for processes that start.
test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(ARGS)

# SeaweedFS, MLflow, Ray and every job on this machine, some ten minutes.
.PHONY: whole-path
whole-path: $(STAMP)
	$(BIN)/python -m tests.integration.whole_path $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks.train_step
	$(BIN)/python -m tests.benchmarks.convert

clean:
	rm -rf runs .pytest_cache .ruff_cache
