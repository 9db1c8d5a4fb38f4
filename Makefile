# Two commands on a fresh machine with python3 >= 3.11, make and pip:  make demo   and   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
# Side of the demo's slides in pixels; the figures in docs/results.md are those of 6000.
SIDE ?= 6000
# Further options of wsi demo, e.g. DEMO="--set train.epochs=4".
DEMO ?=
# Which build of torch (CPU, CUDA, ROCm) is this machine's choice, so torch is pinned by version and not by hash.
TORCH := torch==2.13.0 torchvision==0.28.0
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Test processes at once.
JOBS ?= 2

.PHONY: help setup demo test test-fast faults check lint docs build clean lock
help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

setup: $(VENV)/.installed  ## the environment, from hashed requirements
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("wsi_pipeline needs Python 3.11 or newer; try: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install $(TORCH)
	$(PIP) install --require-hashes --no-deps -r requirements.lock
	$(PIP) install --no-deps --editable .
	@touch $@

demo: setup  ## draw slides and run every stage on them, into ./demo (OUT=…)
	$(BIN)/wsi demo --out $(OUT) --side-px $(SIDE) $(DEMO)

test: setup  ## every test, in JOBS processes
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-fast: setup  ## the tests that take no whole run, in JOBS processes
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile --no-loadscope-reorder

faults: setup  ## runs killed at random moments, in every stage: a quarter of an hour, and its figures
	WSI_FAULTS=full $(BIN)/python -m pytest tests/faults

lint: setup  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint docs test  ## style, types, documentation, tests

docs: setup  ## the documentation, strictly, into site/ (needs no network to read)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

build: setup  ## sdist and wheel into dist/
	$(BIN)/python -m build --no-isolation

# Resolved for a CPU build of torch (UV_FIND_LINKS: a folder with one), so that no driver package is locked. Versions stay
# as they are and what is new is added; UPGRADE=--upgrade takes newer versions. The second file is the part of the first
# that the program needs to run.
RESOLVE = printf '%s\n' $(patsubst torch==%,torch==%+cpu,$(TORCH)) | $(BIN)/uv pip compile pyproject.toml --constraint - \
	--generate-hashes --universal --python-version 3.11 --no-emit-package torch --no-emit-package torchvision \
	--index-strategy unsafe-best-match --no-emit-find-links --no-header --no-annotate --quiet
lock: setup  ## resolve requirements.lock and requirements-runtime.lock (UPGRADE=--upgrade: newer versions)
	$(BIN)/python -m pip install --quiet uv
	$(RESOLVE) $(UPGRADE) $(patsubst %,--extra %,dev docs hpc studies tensorboard) --output-file requirements.lock
	rm -f requirements-runtime.lock
	$(RESOLVE) --constraint requirements.lock --output-file requirements-runtime.lock

clean:  ## remove the environment, the demo, the site and built packages
	rm -rf $(VENV) $(OUT) site dist
