# make demo    the whole path on real recordings: checkpoint, conversion, proof, pruning, pictures
# make test    lint and all tests
# make quick   lint and the fast tests, for use while editing
# make docs    the documentation site, in build/docs/index.html; a warning is an error
# make clean   removes all that the others made
# Each installs what it needs into .venv first. An accelerator build of JAX: see the README.

PYTHON ?= python3
# The version the tests run with. Its CPU build is enough; any way of naming one to pip can be passed instead.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Modules that compile nothing, or little.
QUICK := tests/test_house.py tests/test_files.py tests/test_positions.py tests/test_audio.py tests/test_audio_files.py \
	tests/data/test_labels.py tests/data/test_own.py tests/data/test_published.py tests/evaluation/test_metrics.py \
	tests/training/test_schedules.py tests/training/test_recipes.py tests/convert/test_read.py tests/convert/test_read_refusals.py

.PHONY: demo test quick docs clean

demo: .venv/installed
	$(BIN)/python scripts/demo.py

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2

quick: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 $(QUICK)

docs: .venv/docs-installed
	$(BIN)/python -m sphinx -W --keep-going -n -q docs build/docs
	@echo "open build/docs/index.html"

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# docs/conf.py stands in for torch, so the site needs neither it nor the tests' packages.
.venv/docs-installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv build demo *.egg-info
