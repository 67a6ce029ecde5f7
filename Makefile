# Every target makes its own environment in .venv. `make PYTHON=python3.12 …` picks the interpreter.
PYTHON ?= python3
BIN := .venv/bin
# What an NVIDIA GPU needs, where there is one.
GPU := $(if $(wildcard /dev/nvidiactl /proc/driver/nvidia/version),[gpu])
MODEL ?=
ARGS ?=

.PHONY: help demo serve test test-gpu lint types proto format clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

demo: .venv/.installed  ## start a server on the demo model and watch several streams at once
	@$(BIN)/inflight demo $(ARGS)

serve: .venv/.installed  ## serve until SIGTERM: make serve [MODEL=DIR] [ARGS="--port 50051"]
	@$(BIN)/inflight serve $(MODEL) $(ARGS)

test: lint types  ## everything that CI runs
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests/kvcache tests/scheduler
	$(BIN)/coverage report
	$(BIN)/python -m pytest -n auto --dist worksteal --ignore tests/kvcache --ignore tests/scheduler

test-gpu: .venv/.developing  ## what needs an NVIDIA GPU; most of it is compiling, so in parallel
	$(BIN)/python -m pytest -m gpu -n 8 --dist worksteal

lint: .venv/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.developing
	$(BIN)/mypy engine scheduler kvcache proto/inflight benchmarks tests

proto: .venv/.developing  ## regenerate the committed gRPC stubs
	$(BIN)/python proto/generate.py

format: .venv/.developing  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and all caches
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage

.venv/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (first time only) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(GPU)'
	@touch $@

.venv/.developing: .venv/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
