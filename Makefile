# make demo: install into .venv and run the main job on a real encoder.
# make test: install, lint, type-check, check the layering, run the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint install format

# Done again when the dependencies change; works on an existing .venv too.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

install: .venv/.installed

demo: .venv/.installed
	$(BIN)/faster-pruner demo --overwrite

lint: .venv/.installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

format: .venv/.installed
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks
