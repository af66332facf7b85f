# make demo: install into .venv and run the main job on a real encoder.
# make test: install, lint, type-check, check the layering, build the pages, run the tests.
# make site: the pages of docs/ as a site, in site/.
PYTHON ?= python3
BIN := .venv/bin

# make test-elsewhere: tests of whole runs on a device that is not the CPU (tests/accelerator.cpp; takes g++).
# make test-oldest: the main job on the oldest versions that pyproject.toml allows (in .venv-oldest).
.PHONY: demo test test-elsewhere test-oldest lint site install format

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
	$(BIN)/pyright -p benchmarks & benchmarks=$$!; $(BIN)/pyright && wait $$benchmarks
	$(BIN)/lint-imports

# what a page names must be there: a dead link is an error
site: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# a process per core: the tests' models are too small for threads; the longest files first, not those of most tests
test: lint site
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

ELSEWHERE := tests/api tests/cli tests/method tests/objectives
test-elsewhere: .venv/.installed
	FASTER_PRUNER_TESTS_ELSEWHERE=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ELSEWHERE)

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt \
		-e '.[audio,vision]' 'accelerate' 'pytest>=8' 'pytest-timeout>=2.3'
	touch $@

OLDEST := tests/objectives tests/data tests/api/test_prune.py tests/api/test_cut.py tests/api/test_in_memory.py \
	tests/checkpoint/test_saving.py tests/checkpoint/test_auto_classes.py tests/cli
# warnings of old versions about themselves are not errors here
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest -q -o filterwarnings=default $(OLDEST)

format: .venv/.installed
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks
