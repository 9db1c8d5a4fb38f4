# Two commands on a fresh machine with python3 >= 3.11, make and pip:  make demo   and   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
# Which build of torch (CPU, CUDA, ROCm) is this machine's choice, so torch is pinned by version and not by hash.
TORCH := torch==2.13.0 torchvision==0.28.0
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help setup demo test faults check lint clean lock
help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

setup: $(VENV)/.installed  ## the environment, from hashed requirements
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("wsi_pipeline needs Python 3.11 or newer; try: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install $(TORCH)
	$(PIP) install --require-hashes --no-deps -r requirements.lock
	$(PIP) install --no-deps --editable .
	@touch $@

demo: setup  ## draw slides and take them the whole way into ./demo (OUT=…)
	$(BIN)/wsi demo --out $(OUT)

test: setup  ## every test
	$(BIN)/python -m pytest

faults: setup  ## runs killed at random moments, in every stage: a quarter of an hour, and its figures
	WSI_FAULTS=full $(BIN)/python -m pytest tests/faults

lint: setup  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## what CI runs

# Resolved for a CPU build of torch (UV_FIND_LINKS: a folder with one), so that no driver package is locked.
lock: setup  ## resolve requirements.lock anew
	$(BIN)/python -m pip install --quiet uv
	printf '%s\n' $(patsubst torch==%,torch==%+cpu,$(TORCH)) | $(BIN)/uv pip compile pyproject.toml --extra dev --extra hpc --extra studies --extra tensorboard --constraint - \
		--generate-hashes --universal --python-version 3.11 --no-emit-package torch --no-emit-package torchvision \
		--index-strategy unsafe-best-match --no-emit-find-links --no-header --no-annotate --quiet --upgrade --output-file requirements.lock

clean:  ## remove the environment and the demo
	rm -rf $(VENV) $(OUT)
