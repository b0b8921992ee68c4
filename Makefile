# What CI runs is what people run. `make` alone lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ROOMS := models training service maskserve

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-page container test-all fuzz check format bench lock clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## make .venv with everything that is locked (the other targets do it too)

# The mark is taken away first and set last: where it is missing, an install was interrupted and the environment is
# made anew; where it is older than the lock, the environment is brought to the lock.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; this is %s. Name one: make PYTHON=python3.12" % sys.version.split()[0])'
	@test -e $(READY) || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python -m uv pip sync --quiet --python $(BIN)/python requirements.lock
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)

demo: $(READY)  ## the whole road: draw data, train, export, evaluate, serve, ask (5 minutes)
	@$(BIN)/maskserve demo

# A process for each core, of one thread: where two processes have two threads each, these wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

test: $(READY)  ## the test suite
	@$(PYTEST) --dist loadfile -m "not slow and not browser and not container"

test-slow: $(READY)  ## what takes longer: trainings that are killed and go on, every encoder
	@$(PYTEST) --dist worksteal -m slow

test-page: $(READY)  ## the web page in a real Chromium
	@$(BIN)/python -m pytest -m browser

container: $(READY)  ## an image, built, run and asked; needs docker or podman
	@$(BIN)/python -m pytest -s -m container tests/deploy

test-all: test test-slow test-page container  ## all of these

fuzz: $(READY)  ## 20,000 changed pictures against the decoder and the service (10 minutes)
	@FUZZ_PICTURES=20000 $(BIN)/python -m pytest -s tests/service/test_fuzz.py

check: $(READY)  ## ruff, mypy and the one rule of the house
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(ROOMS)
	@$(BIN)/python -m pytest -q tests/test_layout.py

format: $(READY)  ## let ruff format and mend
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

bench: $(READY)  ## measure training, the engines, the service beside others, its page and client, and batches (two hours)
	@$(BIN)/python -m benchmarks.training
	@$(BIN)/maskserve bench runs/demo/bundle
	@$(BIN)/python -m benchmarks.serving
	@$(BIN)/python -m benchmarks.inference
	@$(BIN)/python -m benchmarks.client
	@$(BIN)/python -m benchmarks.page
	@$(BIN)/python -m benchmarks.batch

lock: $(READY)  ## resolve the requirements again, for all platforms and Pythons
	@$(BIN)/python -m uv pip compile --quiet --universal --upgrade --no-emit-index-url --python-version 3.11 --all-extras pyproject.toml -o requirements.lock
	@$(BIN)/python -m uv pip compile --quiet --universal --no-emit-index-url --python-version 3.11 --extra serve -c requirements.lock pyproject.toml -o requirements-serve.lock

clean:  ## take away the environment and the caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
