# `make help` lists the targets. Each one sets up what it needs, once: nothing but Python 3.11 or later is expected.

VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
CACHE := .cache
TRANSFORMERS := $(shell sed -n 's/^transformers==//p' constraints.txt)
TRANSFORMERS_TESTS := $(CACHE)/transformers-$(TRANSFORMERS)/tests

# The first interpreter that is new enough; another one: make PYTHON=/path/to/python3 ...
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# One more than there are cores, as some tests wait.
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() + 1, 4))')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 26

.PHONY: demo
demo: $(VENV)/installed  ## Train a small OffSeg on generated scenes, evaluate, save, reload and use it; some minutes
	$(BIN)/python scripts/demo.py

.PHONY: test
test: lint $(VENV)/timm/installed  ## Lint and test, all but the slow tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: coverage
coverage: $(VENV)/timm/installed  ## The tests of `make test`, and which lines and branches they reach, subprocesses included
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" --numprocesses $(WORKERS) --dist loadfile --cov --cov-report term

.PHONY: test-slow
test-slow: $(VENV)/installed  ## The slow tests: compilation and export of whole models
	$(BIN)/pytest -m slow

.PHONY: test-oldest
test-oldest: $(OLDEST)/installed  ## The tests of `make test` with the oldest versions of all dependencies
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -m "not slow" --numprocesses $(WORKERS) --dist loadfile

.PHONY: test-transformers
test-transformers: $(VENV)/installed $(TRANSFORMERS_TESTS)  ## transformers' own common tests, applied to our classes
	TRANSFORMERS_TESTS=$(TRANSFORMERS_TESTS) $(BIN)/pytest tests/transformers_mixins

.PHONY: lint
lint: $(VENV)/installed  ## Check style, format, types, what imports what, and that every library is a dependency
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry src

.PHONY: docs
docs: $(VENV)/docs-installed  ## Build the site of docs/ into build/site; a warning is an error
	$(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

.PHONY: benchmark
benchmark: $(VENV)/installed  ## Time OffSeg beside the official arithmetic and SegFormer
	$(BIN)/python scripts/benchmark/speed.py

# The command's module is copied, even if the package is read from src.
$(VENV)/installed: pyproject.toml constraints.txt src/offseg_command.py
	@test -n "$(PYTHON)" || { echo "offseg-hf needs Python 3.11 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Installing offseg-hf and the tested versions of its dependencies into $(VENV) (once, some minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all]"
	@touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	@touch $@

$(OLDEST)/installed: pyproject.toml constraints-oldest.txt
	@echo "Installing offseg-hf and the oldest versions of its dependencies into $(OLDEST) (once; gigabytes with CUDA)"
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt \
		--editable ".[all]"
	@touch $@

# timm and segmentation_models_pytorch are tested with in processes of their own. Beside a build of torch that torchvision
# was not compiled for, importing torchvision fails, and transformers imports it wherever it is installed: so these three
# live outside of site-packages.
$(VENV)/timm/installed: $(VENV)/installed
	@echo "Installing timm and segmentation_models_pytorch, for tests beside them, into $(VENV)/timm"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-deps --upgrade --target $(VENV)/timm timm torchvision segmentation_models_pytorch
	@touch $@

# Wheels come without tests, the source distribution has the common ones.
$(TRANSFORMERS_TESTS): $(VENV)/installed
	@echo "Downloading the tests of transformers $(TRANSFORMERS) into $(CACHE)"
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
		--dest $(CACHE) transformers==$(TRANSFORMERS)
	tar -xzf $(CACHE)/transformers-$(TRANSFORMERS).tar.gz -C $(CACHE) transformers-$(TRANSFORMERS)/tests
	@touch $@
