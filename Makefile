# Two verbs are enough on a machine that has Python 3.11+ and make: `make serve`, `make test`.
# They make .venv and install what they need; they do so again when pyproject.toml has changed.

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
export VENV PYTHON TORCH_INDEX

.DEFAULT_GOAL := help
.PHONY: help serve test lint format bench examples docs clean

help: ## show this page
	@awk 'BEGIN { FS = ":.*## "; print "Giusto: make VERB [ARGS=\"...\"]\n" } \
	     /^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@printf '%s\n' '' \
	  'Start with `make serve`, then from another terminal the curl line that it prints.' \
	  '' \
	  '  make serve ARGS="--port 9000 --scheduling-policy edf"' \
	  '  make test ARGS="tests/unit -k slo"' \
	  '  make bench ARGS="--request-rate 2 --duration 60"' \
	  '' \
	  'PYTHON=python3.12       interpreter for the virtual environment' \
	  'VENV=DIR                where it goes, .venv by default' \
	  'TORCH_INDEX=URL         extra package index for torch, such as' \
	  '                        https://download.pytorch.org/whl/cpu for its small CPU build'

serve: $(VENV)/.serve.stamp ## set up, then serve the default model on port 8000
	@exec $(BIN)/giusto serve $(ARGS)

test: $(VENV)/.dev.stamp ## set up, then run the whole test suite
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev.stamp ## check style, formatting, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev.stamp ## format the sources and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.serve.stamp ## load a running server with the built-in mixed workload
	@$(BIN)/giusto bench $(ARGS)

examples: $(VENV)/.dev.stamp ## run the examples that need no server
	$(BIN)/python examples/write_a_policy.py
	$(BIN)/python examples/simulate_a_policy.py

docs: $(VENV)/.dev.stamp ## write the generated pages of docs/
	$(BIN)/python scripts/papers.py

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.serve.stamp $(VENV)/.dev.stamp: $(VENV)/.%.stamp: pyproject.toml scripts/install
	@scripts/install $*
