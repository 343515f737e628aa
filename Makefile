# `make help` explains every target; `make demo` and `make test` do all their set-up themselves.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fluxpool
VENV := .venv
BIN := $(VENV)/bin
# Byte code with the packages: programs on read-only roots (pods) cannot keep it, and would compile at every start.
export UV_COMPILE_BYTECODE := 1
EXTRAS := operator worker gateway cli docs
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11
SPHINX_OPTIONS := --fail-on-warning --keep-going --quiet --doctree-dir build/doctrees

.PHONY: help setup postgres browser control-plane demo demo-cluster screenshots test test-all e2e lint format schemas docs lock bench clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

setup: $(VENV)/.installed $(CACHE)/kafka.ready ## Make .venv with everything pinned, and fetch the Apache Kafka jars

$(BIN)/uv:
	@hack/prerequisites python3
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.installed: requirements/dev.txt pyproject.toml | $(BIN)/uv
	@echo "installing the pinned Python packages (about 3 GB to download, once; 6.4 GB on disk) ..." >&2
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

# The stamp is per pom.xml; the jars themselves lie in a folder named by its hash, so switching branches refetches nothing.
.PHONY: $(CACHE)/kafka.ready
$(CACHE)/kafka.ready: $(VENV)/.installed
	@hack/kafka/fetch

demo: setup ## Send 24 prompts through real Kafka into a FLUX pipeline on this machine (DATA_DIR=dir, KEEP=1 leaves everything running, with the page open, MODEL=dir)
	$(BIN)/fluxpool local demo $(if $(DATA_DIR),--data-dir "$(DATA_DIR)") $(if $(KEEP),--keep) $(if $(MODEL),--model "$(MODEL)")

demo-cluster: setup control-plane ## The same on a real Kubernetes control plane with two pools (root on Linux; TASKS=24 each, KEEP=1 leaves it up)
	PYTHONPATH=hack $(BIN)/python -m demo_cluster $(if $(TASKS),--tasks "$(TASKS)") $(if $(KEEP),--keep)

screenshots: setup ## Take the pictures of the page that docs/ shows, in Chromium on real parts (docs/pictures)
	PYTHONPATH=hack $(BIN)/python -m screenshots

test: setup ## Run the tests: real Kafka, real tiny FLUX pipeline; those on a control plane when it was built (JOBS=2 side by side, OPTIONS=--timeline)
	$(BIN)/pytest $(if $(JOBS),-n $(JOBS)) $(OPTIONS)

test-all: setup control-plane ## Run every test, also those of the kit, of images and of foreign software whose inputs did not change
	TEST_REQUIRE_CLUSTER=1 $(BIN)/pytest --test-all $(if $(JOBS),-n $(JOBS))

postgres: ## Find PostgreSQL's server programs for the tests, or install Debian's package (as root)
	@hack/postgres/provide

browser: ## Find Chromium for the tests of the page, or install Debian's package (as root)
	@hack/browser/provide

control-plane: ## Build the Kubernetes control plane that the cluster tests run on (some minutes, once; needs Go)
	@hack/control-plane/build

e2e: setup control-plane ## Run the tests of the chart and those on a real Kubernetes control plane; none of the product's may be skipped
	TEST_REQUIRE_CLUSTER=1 $(BIN)/pytest tests/chart tests/cluster

lint: $(VENV)/.installed ## Check format, lint, types, import directions and generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m fluxpool_contract.schemas --check docs/schemas
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m fluxpool_operator.crd --check crds
	$(BIN)/python -m fluxpool_operator.crd --check charts/fluxpool/crds
	$(BIN)/sphinx-build -b dummy $(SPHINX_OPTIONS) docs build/docs-check

format: $(VENV)/.installed ## Format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(VENV)/.installed ## Write what is generated from the models: JSON Schemas, the tables in docs/, the CRD
	$(BIN)/python -m fluxpool_contract.schemas docs/schemas
	$(BIN)/python docs/generate.py
	$(BIN)/python -m fluxpool_operator.crd crds
	$(BIN)/python -m fluxpool_operator.crd charts/fluxpool/crds

docs: $(VENV)/.installed ## Build the documentation site in build/docs; warnings and links without a target are errors
	$(BIN)/sphinx-build -b html $(SPHINX_OPTIONS) docs build/docs
	@echo "build/docs/index.html"

lock: | $(BIN)/uv ## Resolve the pins again: requirements/*.txt, one version of each package everywhere
	$(LOCK) $(UPGRADE) --extra dev pyproject.toml --output-file requirements/dev.txt
	for extra in $(EXTRAS); do \
		$(LOCK) --extra $$extra --constraint requirements/dev.txt pyproject.toml --output-file requirements/$$extra.txt; \
	done

bench: setup ## Measure the accept path, the engine's idle time and the waits for it beside their alternatives
	$(BIN)/python benchmarks/accept.py
	$(BIN)/python benchmarks/worker_overhead.py
	$(BIN)/python benchmarks/waiting.py

clean: ## Remove the virtual environment and what tests and demos left (the cache folder stays)
	rm -rf $(VENV) build .fluxpool demo-data .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
