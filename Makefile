# make demo   the whole path on real recordings: checkpoint, conversion, proof, pruning, pictures
# make test   lint and all tests
# Both install what they need into .venv first. An accelerator build of JAX: see the README.

PYTHON ?= python3
# The version the tests run with. Its CPU build is enough; any way of naming one to pip can be passed instead.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/installed
	$(BIN)/python scripts/demo.py

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo *.egg-info
