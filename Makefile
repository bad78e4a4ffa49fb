# make quickstart and make test are all that a fresh machine needs; both make .venv when it is missing or older than the requirements.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint venv clean

quickstart: .venv/installed
	$(BIN)/python launch/train.py --config configs/quickstart.py --workdir runs/quickstart
	$(BIN)/python launch/evaluate.py --model runs/quickstart --tasks codesearch/python_source

test: .venv/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --diff .

venv: .venv/installed-dev

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
