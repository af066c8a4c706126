# Everything a fresh machine with Python 3.10+ and make needs; `make` lists it.

PYTHON ?= python3
WORKERS ?= 2# processes that share the tests; each takes a core and up to 4 GB
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup models demo test docs bench format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv and install rlif with pinned versions

# torch goes first and alone: it is most of the download, and a broken one is then seen for what it is.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

models: setup ## fetch the small pretrained models, once, into ~/.cache/rlif (or $RLIF_CACHE)
	$(BIN)/rlif models --fetch

demo: setup ## train the tiny models on their own confidence: a table and figures, in a few minutes
	$(BIN)/rlif quickstart --out runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

test: setup ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror src/rlif/model/kernels/cpu.c
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

docs: setup ## the documentation as a site, site/index.html; a broken link or name fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: setup ## the short benchmarks: one step beside TRL and transformers, and the head; some minutes
	$(BIN)/python benchmarks/w1.py --steps 2
	$(BIN)/python benchmarks/head.py --tokens 256 --rounds 2
	$(BIN)/rlif estimate paper-qwen3-1.7b-base --count 8

format: setup ## put the code into its usual form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i src/rlif/model/kernels/cpu.c

clean: ## remove .venv and the caches of the tools; runs/ stays
	rm -rf site .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
