# `make quickstart` and `make test` work on a fresh machine: both create .venv if it is missing or
# older than the requirements. `make oracles` installs torch into a second environment,
# .venv-oracles.
PYTHON ?= python3
BIN := .venv/bin
ORACLES := .venv-oracles/bin
PIP := -m pip install --quiet --disable-pip-version-check
PYTEST := -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal
# On Linux the default index has the CUDA build of torch: gigabytes that the oracles never use.
CPU_TORCH := https://download.pytorch.org/whl/cpu

.PHONY: quickstart test oracles goldens lint venv clean

quickstart: .venv/installed
	$(BIN)/python launch/train.py --config configs/quickstart.py --workdir runs/quickstart
	$(BIN)/python launch/evaluate.py --model runs/quickstart --tasks codesearch/python_source

test: .venv/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python $(PYTEST)

# Compares the goldens with the installed libraries, and runs the benchmarks against other libraries
# on tiny models.
oracles: .venv-oracles/installed
	$(ORACLES)/python $(PYTEST) tests/oracles

goldens: .venv-oracles/installed
	$(ORACLES)/python tests/goldens/write.py

lint: .venv/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --diff .
	$(BIN)/python -m mypy

venv: .venv/installed-dev

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --editable .
	touch $@

.venv/installed-dev: requirements-dev.txt requirements/gcs.txt requirements/prepare.txt .venv/installed
	$(BIN)/python $(PIP) -r requirements-dev.txt -r requirements/gcs.txt -r requirements/prepare.txt
	touch $@

.venv-oracles/installed: pyproject.toml requirements.txt requirements-dev.txt requirements/gcs.txt requirements/prepare.txt requirements/oracles.txt
	$(PYTHON) -m venv .venv-oracles
	$(ORACLES)/python $(PIP) --editable . -r requirements-dev.txt -r requirements/gcs.txt -r requirements/prepare.txt
	$(ORACLES)/python $(PIP) --no-deps --extra-index-url $(CPU_TORCH) $$(grep '^torch==' requirements/oracles.txt)
	$(ORACLES)/python $(PIP) -r requirements/oracles.txt
	touch $@

clean:
	rm -rf .venv .venv-oracles build *.egg-info .pytest_cache .ruff_cache .mypy_cache
