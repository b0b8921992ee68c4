# People and CI run the same commands. `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := models training service maskserve
# Every process compiles torch again where this is set: `import training.train` then takes 23 s of processor time, not 7.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-changed test-slow test-page container test-all fuzz mutation-score check format bench gpu-check lock clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(READY)  ## create .venv with the locked requirements; the other targets do it when needed

# The marker file is removed first and written last. If it is missing, an install was interrupted and the environment
# is created again. If it is older than the lock, the environment is synchronized with the lock.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "This is Python %s; 3.11 or later is required. Choose one: make PYTHON=python3.12" % sys.version.split()[0])'
	@test -e $(READY) || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python -m uv pip sync --quiet --python $(BIN)/python requirements.lock
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)

demo: $(READY)  ## draw a data set, train, export, evaluate and serve a model, and query it (5 minutes)
	@$(BIN)/maskserve demo

# One process per core, each with one thread: threads of several processes on one core wait for each other. Waiting
# OpenMP threads sleep instead of spinning, because spinning threads take the cores from the other processes.
QUIET_THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
# worksteal gives each process a contiguous part of the suite: few session and module fixtures are built twice. A
# process that has finished takes tests from the end of another's part.
PYTEST := $(QUIET_THREADS) $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --durations=10
FAST := -m "not slow and not browser and not container"

test: $(READY)  ## run the fast tests and show the 10 slowest
	@$(PYTEST) $(FAST)

test-changed: $(READY)  ## run the fast tests of files changed since BASE (default: HEAD)
	@tests=$$($(BIN)/python -m tests.import_graph $(BASE)) && if [ -n "$$tests" ]; then $(PYTEST) $(FAST) $$tests; else echo "No test covers the changed files."; fi

test-slow: $(READY)  ## run the slow tests: interrupted trainings, kinds of encoders, the demo
	@$(PYTEST) -m slow $$(grep -rl "mark.slow" tests --include="test_*.py")

test-page: $(READY)  ## run the tests of the web page in Chromium
	@$(QUIET_THREADS) $(BIN)/python -m pytest --durations=10 -m browser tests/page

container: $(READY)  ## build, run and query a container image; needs docker or podman
	@$(BIN)/python -m pytest -s -m container tests/deploy

test-all: test test-slow test-page container  ## run all of the tests above

fuzz: $(READY)  ## send 20,000 mutated images to the decoder and the service (10 minutes)
	@$(QUIET_THREADS) FUZZ_IMAGES=20000 $(BIN)/python -m pytest -s tests/service/test_fuzz.py

mutation-score: $(READY)  ## count how many of 32 bugs put into the code the tests find (45 minutes)
	@$(QUIET_THREADS) $(BIN)/python -m tests.mutation_score

check: $(READY)  ## run ruff, mypy and the import rule
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(PACKAGES)
	@$(BIN)/python -m pytest -q tests/test_layout.py

format: $(READY)  ## fix and format the code with ruff
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

bench: $(READY)  ## measure training, engines, service, web page, client and batch prediction (2 hours)
	@$(BIN)/python -m benchmarks.training
	@$(BIN)/maskserve bench runs/demo/bundle
	@$(BIN)/python -m benchmarks.serving
	@$(BIN)/python -m benchmarks.inference
	@$(BIN)/python -m benchmarks.client
	@$(BIN)/python -m benchmarks.page
	@$(BIN)/python -m benchmarks.batch

gpu-check: $(READY)  ## on a GPU machine: its tests, parity, training, engine and CamVid (40 minutes); ARGS=--smallest rehearses
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

lock: $(READY)  ## resolve both lock files again, for all platforms and Python versions
	@$(BIN)/python -m uv pip compile --quiet --universal --upgrade --no-emit-index-url --python-version 3.11 --all-extras pyproject.toml -o requirements.lock
	@$(BIN)/python -m uv pip compile --quiet --universal --no-emit-index-url --python-version 3.11 --extra serve -c requirements.lock pyproject.toml -o requirements-serve.lock

clean:  ## remove the environment and the caches, keep runs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
