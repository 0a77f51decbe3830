# make demo: the whole pipeline on sample photographs. make test: every check and test. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A machine with an NVIDIA driver takes torch's CUDA build; any other one is held to a build without it.
GPU := $(shell command -v nvidia-smi 2>/dev/null)
CONSTRAINTS := .ci/constraints.txt $(if $(GPU),,.ci/cpu-constraints.txt)

# Images of containers often set this; hundreds of processes would then compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test tests test-fast test-gpu lint docs coverage lowest highest clean

help:
	@echo 'make setup      the environment, in .venv'
	@echo 'make demo       shard -> train stage by stage -> evaluate -> register -> compress one picture'
	@echo 'make test       linters, types, import contract, every test'
	@echo 'make test-fast  the tests without the slow ones'
	@echo 'make test-gpu   the tests that need a CUDA device'
	@echo 'make docs       the site, in site/: every page, and an API reference from docstrings'
	@echo 'make coverage   the quick tests, with a report of the lines that they run'
	@echo 'make lowest     the quick tests with the lowest versions of all dependencies; make highest'

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml .ci/setup.py .ci/constraints.txt .ci/cpu-constraints.txt
	$(PYTHON) .ci/setup.py $(VENV) $(CONSTRAINTS:%=--constraint %)

demo: setup
	$(BIN)/python recipes/demo/run.py --out demo-out

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

# Linters run beside the tests, which leave a part of two cores idle.
test: setup
	@$(MAKE) --no-print-directory --jobs 2 lint tests

# Threads on top of the workers would only wait for each other. Two cores are kept busy by three
# workers: tests of Slurm, servers and kills wait for a good part of their time.
tests: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile

# Where there is a CUDA device; anywhere else these tests are skipped.
test-gpu: setup
	$(BIN)/pytest -m gpu

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not slurm and not browser and not gpu'

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# From Python 3.12 on, the interpreter itself says which lines ran, at little cost.
coverage: setup
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not slurm and not browser and not gpu' --cov

# The oldest torch comes for CUDA alone, with 6 GB that it needs without a GPU as well.
lowest:
	$(PYTHON) .ci/versions.py lowest

highest:
	$(PYTHON) .ci/versions.py highest $(if $(GPU),,--without-cuda --constraint .ci/cpu-constraints.txt)

clean:
	rm -rf site .venv-lowest .venv-highest .coverage demo-out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
