# Everything a newcomer needs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# files at a time, of the tests that need not be alone; 0: one after another, in this process
WORKERS ?= 3
TOGETHER := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# hundreds of processes are started by the tests: each would compile our modules anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run test test-cluster check format bench bench-gate bench-admission bench-accounting bench-analytics bench-scaling test-clients chaos lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## .venv with everything, from the locked and hashed list

$(STAMP): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=…"; exit 1; }
	@echo "setting up $(VENV) (a few hundred MB; once) …"
	@$(PYTHON) -m venv $(VENV) || { echo "python3 has no venv: install your system's python3-venv package"; exit 1; }
	@$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check --require-hashes -r requirements-dev.txt \
	  | grep --line-buffered -E '^(Collecting|Downloading|Installing|Successfully|ERROR)' | cut -c1-100
	@$(BIN)/python -c 'import chdb, nats, redis, httpx2, anthropic' || { echo "the installation is not complete; see above"; exit 1; }
	@touch $@

run: setup  ## the whole relay on this machine, with a demo account (PROFILE=cluster: three of everything)
	@RELAY_PROFILE=$(PROFILE) exec $(BIN)/python -m libs.localstack run

test: setup  ## every test: WORKERS (3) files at a time, then those that must be alone
	$(TOGETHER) -m "not alone"
	$(BIN)/python -m pytest -m alone

test-cluster: setup  ## the tests of admission and the upstream pool again, on a Redis Cluster of three nodes
	RELAY_TEST_REDIS=cluster $(BIN)/python -m pytest -m redis_suite

chaos: setup  ## faults under load for SECONDS (600) with SEED, and a ledger that must come out right
	$(BIN)/python -m tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

check: setup  ## lint, format, types, import rules: seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_tidy.py

format: setup  ## rewrite the code as `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-clients: setup  ## TypeScript SDK and Claude Code, from npm, through the relay
	$(BIN)/python -m tests.clients

bench: setup  ## CPU, times and memory beside nginx and Caddy (PEERS=1: LiteLLM and Portkey too), written to bench/RESULTS.md
	$(BIN)/python -m bench.compare

bench-gate: setup  ## fail if a request costs more than 1.3 × what bench/gate.json remembers: a minute
	$(BIN)/python -m bench.gate

bench-admission: setup  ## CPU of admission, written to bench/ADMISSION.md
	$(BIN)/python -m bench.admission

bench-accounting: setup  ## events a second of one accounting worker, written to bench/ACCOUNTING.md
	$(BIN)/python -m bench.accounting

bench-analytics: setup  ## usage questions over ROWS (100 million) rows: an hour, 15 GB; written to bench/ANALYTICS.md
	$(if $(ROWS),ROWS=$(ROWS)) $(BIN)/python -m bench.analytics

bench-scaling: setup  ## 1, 2, 4 gateways; keys, accounts, connections: bench/SCALING.md and docs/capacity.md; needs nginx
	$(BIN)/python -m bench.scaling

lock: setup  ## resolve the dependencies anew
	$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install -q uv
	for extra in "requirements.txt" "requirements-dev.txt --extra local --extra dev"; do \
	  $(VENV)-lock/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url --no-emit-find-links pyproject.toml -o $$extra; done
	rm -r $(VENV)-lock

clean:  ## remove what make made, the state of `make run` included
	rm -rf $(VENV) .relay .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build
