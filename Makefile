# Everything from nothing: each target makes the virtual environment first where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Tests run one process a core, each with one thread of arithmetic.
JOBS ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")
STUDY ?= study

.PHONY: help setup study test test-all lint format clean

help:
	@echo "make study      run the study on real data; prints the page and the verdicts"
	@echo "make test       the test suite, without what is slow"
	@echo "make test-all   the whole test suite"
	@echo "make lint       ruff (lint and format) and mypy"
	@echo "make format     let ruff rewrite what it can"

setup: $(VENV)/installed

# torch first and alone: whatever comes after finds it there and brings no other build.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[tools,dev]'
	touch $@

study: setup
	$(BIN)/python -m batchnorm study --out $(STUDY)

test: setup
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(JOBS)

test-all: setup
	$(BIN)/python -m pytest --numprocesses $(JOBS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
