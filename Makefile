# Every target sets up what it needs in .venv; a second run finds it done.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help venv test test-all check format demo docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

venv: $(STAMP)  ## make .venv with the project and its CPU, demo, test and dev extras

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,demo,test,dev]'
	@touch $(STAMP)

# One thread a worker: the test models are tiny, and two pools on two cores only wait for each other.
test test-all: export OMP_NUM_THREADS = 1

test: $(STAMP)  ## run the tests (ARGS='-k fold' for some of them)
	$(BIN)/python -m pytest -n 2 $(ARGS)

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

docs: $(STAMP)  ## build the documents site into site/ (ARGS=serve to read it while writing)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(or $(ARGS),build)

clean:  ## remove .venv, caches and demo outputs
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output site build *.egg-info
