PYTHON ?= python3
TOY_SEED ?= 0
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CONTRACT := tests/test_families.py tests/test_family_analyses.py tests/test_*released.py tests/test_information_flow.py \
	tests/test_extraction.py

.PHONY: demo test checks test4 test-faults test-slow test-lab test-gpu fix bench scaling pictures docs toy clean

demo: .venv/demo  ## set up, then run every notebook on the shipped toy model and make the report
	$(BIN)/anchorlens demo

test: .venv/test  ## set up, then lint, types and tests
	$(MAKE) --jobs=2 checks .venv4/test
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder
	$(MAKE) test4

checks: .venv/test  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test4: .venv4/test  ## the tests of both backends with the newest transformer-lens, which has TransformerBridge alone
	.venv4/bin/python -m pytest -n auto --dist load $(CONTRACT)

test-faults: .venv/test  ## what a sweep must survive: 30 kills of each process at random moments, then real runs
	ANCHORLENS_FAULTS=30 ANCHORLENS_SLOW=1 $(BIN)/python -m pytest tests/test_sweep_faults.py

test-slow: .venv/test  ## JupyterLab, a Ray cluster, the paper's grid in small, memory of many prompts, released runs: minutes
	ANCHORLENS_SLOW=1 $(BIN)/pytest -m slow -n auto --dist loadfile --no-loadscope-reorder

test-lab: .venv/test  ## every notebook in JupyterLab (needs Chromium or Chrome): three minutes
	ANCHORLENS_SLOW=1 ANCHORLENS_LAB=all $(BIN)/python -m pytest tests/test_jupyterlab.py

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
	$(INSTALL) --editable '.[png,dev,ray]'
	touch $@

# All packages are .venv's but those that constraints-4.txt pins, which come first on the path.
.venv4/test: .venv/test constraints-4.txt
	@echo "making .venv4 with transformer-lens 4"
	$(PYTHON) -m venv .venv4
	.venv4/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-4.txt
	others=$$($(BIN)/python -c "import site; print(site.getsitepackages()[0])"); \
	own=$$(.venv4/bin/python -c "import site; print(site.getsitepackages()[0])"); \
	echo "import site; site.addsitedir('$$others')" > "$$own/others.pth"
	touch $@

test-gpu: .venv/test  ## a GPU gives what a CPU gives, and its workers one another: minutes
	ANCHORLENS_GPU=1 $(BIN)/python -m pytest tests/test_gpu.py

fix: .venv/test  ## what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/demo  ## our way against the plain one and the floor, on a quiet machine: a quarter of an hour
	$(BIN)/python -m tests.benchmarks --out docs/benchmarks.json

scaling: .venv/demo  ## cost against demonstrations, queries and layers, for `make pictures` to draw: five minutes
	$(BIN)/python -m tests.benchmarks.scaling

pictures: .venv/demo  ## the pictures of README and docs, drawn anew (needs Chromium or Chrome)
	$(BIN)/python docs/pictures.py

docs: .venv/test  ## the pages of the API, from the docstrings, into outputs/docs
	$(BIN)/python docs/api.py

toy: .venv/demo  ## train the shipped models anew (docs: anchorlens/toy/README.md)
	$(BIN)/python -m anchorlens.toy.train --seed $(TOY_SEED) --out outputs/toy

clean:
	rm -rf .venv .venv4
