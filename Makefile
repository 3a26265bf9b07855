# Every target sets up what it needs in .venv; a second run finds it done.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help venv test test-all check format demo clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

venv: $(STAMP)  ## make .venv with the project and its CPU, demo, test and dev extras

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; run: make PYTHON=python3.12 $(MAKECMDGOALS)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,demo,test,dev]'
	@touch $(STAMP)

test: $(STAMP)  ## run the tests (ARGS='-k fold' for some of them)
	$(BIN)/python -m pytest -n 2 -m 'not slow and not gpu and not download' $(ARGS)

test-all: $(STAMP)  ## also the slow ones and those that download real weights
	$(BIN)/python -m pytest -n 2 -m 'not gpu' $(ARGS)

check: $(STAMP)  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP)  ## the main job on real weights and images (ARGS='--adapter srlora')
	$(BIN)/python -m examples.demo $(ARGS)

clean:  ## remove .venv, caches and demo outputs
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output build *.egg-info
