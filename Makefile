# Every target sets up what it needs in .venv; a second run finds it done.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help venv test test-all test-matrix test-deprecations coverage mutants check format demo docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

venv: $(STAMP)  ## make .venv with the project and its CPU, demo, test and dev extras

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,demo,test,dev]'
	@touch $(STAMP)

# One thread a worker: the test models are tiny, and two pools on two cores only wait for each other.
test test-all test-matrix test-deprecations coverage mutants: export OMP_NUM_THREADS = 1

test: $(STAMP)  ## run the tests (ARGS='-k fold' for some of them)
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-all: $(STAMP)  ## also the slow ones and those that download real weights
	$(BIN)/python -m pytest -n 2 -m 'not gpu' $(ARGS)

test-matrix:  ## the engine's tests with the oldest and the newest libraries that pyproject.toml allows
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python $@"; exit 1; }
	set -e; for set in oldest newest; do \
	  $(PYTHON) -m venv .venv-$$set; \
	  limits=; test $$set = newest || limits="--constraint constraints-oldest.txt"; \
	  .venv-$$set/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager $$limits --editable '.[cpu,train,test]'; \
	  .venv-$$set/bin/python -m pytest -n 2 tests/surgery tests/exporters tests/trust $(ARGS); \
	done

test-deprecations: $(STAMP)  ## the tests, with what dependencies are about to remove as an error
	$(BIN)/python -m pytest -n 2 -W error::DeprecationWarning -W error::PendingDeprecationWarning -W error::FutureWarning \
	  -W 'ignore:`is_gradient_checkpointing` is deprecated:FutureWarning' $(ARGS)  # PEFT 0.21 asks transformers for it

coverage: $(STAMP)  ## lines and branches that the tests run, kept in benchmarks/results/coverage.json
	$(BIN)/python -m pytest -n 2 --cov --cov-report=json:.coverage.json $(ARGS)
	$(BIN)/python -m benchmarks.coverage .coverage.json

mutants: $(STAMP)  ## break the maths and the row provenance on purpose; which breaks do tests miss? (hours)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	$(BIN)/mutmut run $(ARGS)
	$(BIN)/mutmut results

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
	rm -rf $(VENV) .venv-oldest .venv-newest mutants .coverage .coverage.json .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output site build *.egg-info
