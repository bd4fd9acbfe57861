PYTHON ?= python3
TOY_SEED ?= 0
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CONTRACT := tests/test_families.py tests/test_family_analyses.py tests/test_*released.py tests/test_information_flow.py \
	tests/test_extraction.py

.PHONY: demo test test4 fix bench scaling pictures toy clean

demo: .venv/demo  ## set up, then run every notebook on the shipped toy model
	$(BIN)/anchorlens demo

test: .venv/test  ## set up, then lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest -n auto --dist loadfile
	$(MAKE) test4

test4: .venv4/test  ## the tests of both backends with the newest transformer-lens, which has TransformerBridge alone
	.venv4/bin/pytest -n auto --dist load $(CONTRACT)

.venv/python:
	@echo "making .venv and installing torch"
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	touch $@

.venv/demo: .venv/python pyproject.toml constraints.txt
	@echo "installing anchorlens"
	$(INSTALL) --editable '.[png]'
	touch $@

.venv/test: .venv/python pyproject.toml constraints.txt
	@echo "installing anchorlens with what its tests need"
	$(INSTALL) --editable '.[png,dev]'
	touch $@

.venv4/test: pyproject.toml constraints.txt constraints-4.txt
	@echo "making .venv4 and installing anchorlens with transformer-lens 4"
	$(PYTHON) -m venv .venv4
	sed -n 's/^\([a-z-]*==\).*/^\1/p' constraints-4.txt | grep -v -f - constraints.txt | cat - constraints-4.txt > .venv4/constraints.txt
	.venv4/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv4/constraints.txt torch
	.venv4/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv4/constraints.txt --editable '.[dev]'
	touch $@

fix: .venv/test  ## what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/demo  ## our way against the plain one and the floor, on a quiet machine: a quarter of an hour
	$(BIN)/python -m tests.benchmarks --out docs/benchmarks.json

scaling: .venv/demo  ## cost against demonstrations, queries and layers, for `make pictures` to draw: five minutes
	$(BIN)/python -m tests.benchmarks.scaling

pictures: .venv/demo  ## the pictures of README and docs, drawn anew (needs Chromium or Chrome)
	$(BIN)/python docs/pictures.py

toy: .venv/demo  ## train the shipped models anew (docs: anchorlens/toy/README.md)
	$(BIN)/python -m anchorlens.toy.train --seed $(TOY_SEED) --out outputs/toy

clean:
	rm -rf .venv .venv4 outputs
