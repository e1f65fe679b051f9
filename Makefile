# The lines that people, hooks and CI all run. VENV, PYTHON, MODEL, SERVE_ARGS, PYTEST_ARGS and TEST_WORKERS may be set:
#   make serve MODEL=gemma-3-270m SERVE_ARGS="--port 8080"
#   make test PYTEST_ARGS="-k scheduler"

VENV ?= .venv
PYTHON ?= python3
MODEL ?= smollm2
SERVE_ARGS ?=
PYTEST_ARGS ?=
# PRICE of the machine per hour.
PRICE ?= 0.10
LADDER_ARGS ?= --price $(PRICE) --num-requests 48 --scale 0.1 --repeats 2 --rung-s 10 --latency-requests 6 --budget-s 840
TEST_WORKERS ?= 2
BENCH_ARGS ?= --num-requests 32 --prompt-len 128 --output-len 128

BIN := $(VENV)/bin
# The environment variable reaches pip's isolated builds too, which a flag does not.
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip --disable-pip-version-check

# Tests start many processes: byte code is kept, so that only the first compiles nonet.
TESTING := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
# Once, before the test processes would all wait for it.
COMPILE := from nonet.kernels.native import native_available as n; print('native kernels:', n()[1])

.DEFAULT_GOAL := help
.PHONY: help serve test lint types bench ladder env dev model clean

help:  ## show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

serve: env model  ## talk to MODEL at 127.0.0.1:8000, from a clean clone on
	$(BIN)/nonet serve $(MODEL) $(SERVE_ARGS)

test: dev  ## run all tests
	@$(BIN)/nonet pull smollm2 || echo "SmolLM2 could not be fetched: its tests will be skipped" >&2
	@echo "$(TEST_WORKERS) test processes; in each OpenMP, torch and nonet's engine have one thread"
	@$(TESTING) $(BIN)/python -c "$(COMPILE)"
	$(TESTING) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

lint: dev  ## format, rules, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: dev  ## mypy, strict
	$(BIN)/mypy src/nonet

bench: env model  ## throughput of MODEL in process
	$(BIN)/nonet bench offline $(MODEL) $(BENCH_ARGS)

ladder: dev model  ## what each technique saves on MODEL, in a quarter of an hour
	$(BIN)/nonet ladder $(MODEL) $(LADDER_ARGS)

model: env
	$(BIN)/nonet pull $(MODEL)

env: $(VENV)/.runtime

dev: $(VENV)/.dev

# torch comes first and alone, so that its build is chosen before anything that depends on it.
$(VENV)/.runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install torch
	$(PIP) install --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install --group dev
	touch $@

clean:  ## remove the environment
	rm -rf $(VENV)
