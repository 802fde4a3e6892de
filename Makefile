PYTHON ?= python3
BIN := .venv/bin
FOLDER ?= demo
export PYTHONDONTWRITEBYTECODE =  # what a process compiled, the next need not

.PHONY: demo test check audit bench install

demo: .venv/installed
	$(BIN)/python examples/demo.py $(FOLDER)

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of what is installed; asks an advisory service, and fails where that can't be reached.
audit: .venv/installed
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python tests/advisories.py --local --skip-editable $(AUDIT)

# Some minutes; `make bench BENCH=--full` takes hours.
bench: .venv/installed-dev
	$(BIN)/python benchmarks/all.py $(BENCH)

install: .venv/installed

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python setup.py
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable .
	touch $@

# Of the libraries for tests little is imported: to compile all of them takes two minutes.
.venv/installed-dev: .venv/bin/python setup.py
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "silero-vad>=6,<7"  # its model alone is used: torch is not needed
	touch .venv/installed $@
