# flatc, from a fresh clone: needs only make and Python 3.11 or newer.
#
#   make demo        compile, run and explain a small attention layer
#   make layers      compile whole layers of published models, and say how long that takes
#   make scaling     what masks, shared heads and latent rows save at 64K tokens
#   make test        the tests that take seconds
#   make test-all    every test
#   make check       lint, format, types
#   make docs        write the outputs in the documents anew
#   make clean       remove everything that make built
#
# PYTHON=python3.12 make ...  chooses the interpreter that the virtual environment is made from.

.DEFAULT_GOAL := help
.PHONY: help demo layers scaling test test-all check format docs clean

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEVELOPMENT := $(VENV)/.development-installed
IS_RECENT := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	"$$python" -c "$(IS_RECENT)" 2>/dev/null && { echo "$$python"; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# pip compiles what it installs, but not a package that stays where it is.
BYTECODE := $(BIN)/python -m compileall -q flatc passes dialects

help:
	@sed -n 's/^# \{0,1\}//; 1,12p' Makefile

demo: $(RUNTIME)
	$(BIN)/python examples/demo.py

layers: $(RUNTIME)
	$(BIN)/python examples/layers.py

scaling: $(RUNTIME)
	$(BIN)/python examples/scaling.py

# Two workers on two cores: BLAS threads would only get into their way. A file's tests share what it has compiled.
test test-all: export OPENBLAS_NUM_THREADS := 1

test: $(DEVELOPMENT)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(DEVELOPMENT)
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(DEVELOPMENT)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

format: $(DEVELOPMENT)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(DEVELOPMENT)
	UPDATE_DOCS=1 $(BIN)/python -m pytest tests/test_docs.py -k output
	$(BIN)/python -m flatc.validation.document docs/validation.md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c "$(IS_RECENT)" || { \
		echo "error: flatc needs Python 3.11 or newer with its venv module; set PYTHON=/path/to/python3.11"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(RUNTIME): pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	$(BYTECODE)
	@touch $@

$(DEVELOPMENT): pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev]'
	$(BYTECODE)
	@touch $@ $(RUNTIME)
