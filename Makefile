# `make run` and `make test` need Python 3.11 or newer, and nothing else of ours.
# Another interpreter: make PYTHON=/opt/python/bin/python3.12 run

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# Arguments for pytest or for the benchmarks: make test ARGS='-k coverage', make bench ARGS='--quick'
ARGS :=

.PHONY: run install test bench check format clean
.DEFAULT_GOAL := install

run: install
	@exec $(BIN)/candlery serve

install: $(VENV)/.installed

# The stamps make a second `make` instant, and a changed pin or dependency a new installation.
$(VENV)/.installed: pyproject.toml constraints.txt $(BIN)/python
	@echo "Installing Candlery and what it needs into $(VENV) (a minute or two, the first time)"
	@$(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need into $(VENV)"
	@$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
		if "$$python" $(NEW_ENOUGH) 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "Candlery needs Python 3.11 or newer; tried: $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)" >&2; \
		echo "Install it, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi; \
	"$$found" -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "$$found cannot make a virtual environment (Debian and Ubuntu: apt install python3-venv)" >&2; \
		exit 1; \
	}

# Node.js and a TimescaleDB in WebAssembly. Their tests are skipped where this fails, or fail where nothing may be skipped.
test: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.timescale.server install \
		|| echo "TimescaleDB for the tests could not be installed (no network?): its tests will not run" >&2
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Figures beside their controls, in at most ten minutes; see docs/development.md.
bench: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.timescale.server install \
		|| echo "TimescaleDB could not be installed (no network?): nothing is measured on it" >&2
	@$(BIN)/python -m bench $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Everything that can be made again; never the data.
clean:
	rm -rf $(VENV) build *.egg-info .test-tmp .bench-tmp .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
