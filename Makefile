# `make demo` and `make test` install what they need, Debian packages included.
PYTHON ?= python3.11
BIN := .venv/bin
# Two processes: one for all that shares the session's Ray and endpoint, the other for the rest, file by file (tests/conftest.py).
# A test that hangs fails, with all stacks, rather than the whole.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder
STAMP := .venv/.installed

.PHONY: install demo test test-all check bench docs clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock scripts/install
	@PYTHON=$(PYTHON) scripts/install
	@touch $(STAMP)

demo: install
	@scripts/demo

check: install
	@$(BIN)/ruff format --check platform jobs serve tests benchmarks
	@$(BIN)/ruff check platform jobs serve tests benchmarks
	@$(BIN)/mypy

test: install
	@$(PYTEST) --timeout 300 -m "not slow and not gpu"

test-all: install
	@$(PYTEST) --timeout 1800

bench: install
	@$(BIN)/python -m benchmarks

docs: install
	@$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site build .mypy_cache .ruff_cache .pytest_cache
