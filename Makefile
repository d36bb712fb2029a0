# `make demo` and `make test` install what they need, Debian packages included.
PYTHON ?= python3.11
BIN := .venv/bin
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
	@$(BIN)/python -m pytest -q -m "not slow and not gpu"

test-all: install
	@$(BIN)/python -m pytest -q

bench: install
	@$(BIN)/python -m benchmarks

docs: install
	@$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site build .mypy_cache .ruff_cache .pytest_cache
