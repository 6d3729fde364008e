# crabpot's commands; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
CLUSTER ?= ../shared/cluster/cluster
MINUTES ?= 10

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.installed: pyproject.toml requirements-dev.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: venv
venv: .venv/.installed ## make .venv with everything that is locked

.PHONY: system
system: ## install the Debian packages that demo and tests use (root), or say which are missing
	@deploy/demo/system

.PHONY: demo
demo: system venv ## start everything on this machine and watch a push become an image
	@deploy/demo/up

.PHONY: demo-down
demo-down: ## stop what `make demo` started
	@deploy/demo/down

.PHONY: lint
lint: venv ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

.PHONY: test
test: system venv lint ## lint, then the unit, integration and fault tests
	$(BIN)/pytest --numprocesses auto --dist loadfile

.PHONY: thorough
thorough: system venv ## the kills of retention, collections and promotions at every effect, and their long random runs
	$(BIN)/pytest --numprocesses auto --dist loadfile -m thorough

.PHONY: e2e
e2e: system venv ## the main job on the cluster that KUBECONFIG names
	CRABPOT_E2E=1 $(BIN)/pytest tests/e2e tests/unit/test_chart.py

.PHONY: soak
soak: system venv ## ten minutes of builds on the cluster while everything is killed and cut off (MINUTES=60 for longer); then the count
	CRABPOT_E2E=1 $(BIN)/python -m tests.soak --minutes $(MINUTES)

.PHONY: bench
bench: system venv ## every figure of bench/, each against a baseline in the same run
	$(BIN)/python -m bench

.PHONY: schemas
schemas: venv ## write the JSON Schemas again from the code
	$(BIN)/python -m ledger.schema

.PHONY: lock
lock: venv ## resolve the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements-dev.lock
