# Everything here installs what it needs into .venv first. Only Python 3.11 or newer and make are assumed.
.PHONY: help demo up test test-real drill check simulate bench model-check manifests docs release lock clean

PY := .venv/bin/python
export PYTHONUNBUFFERED := 1

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: ## six models on two simulated GPUs: wake, fill, preempt (then the live view, on a terminal)
	@PYTHON="$(PYTHON)" ./scripts/install local
	@$(PY) -m localcluster.demo $(ARGS)

up: ## the same parts on this machine's own GPUs, for use
	@PYTHON="$(PYTHON)" ./scripts/install local
	@.venv/bin/greenthread up $(ARGS)

test: ## all tests that need no program from elsewhere
	@PYTHON="$(PYTHON)" ./scripts/install dev
	@./scripts/test $(ARGS)

test-real: ## the tests on a real kube-apiserver and real vLLM (builds them once: 15 minutes, 6 GB)
	@PYTHON="$(PYTHON)" ./scripts/install dev
	$(PY) -m tests.testbeds.install
	$(PY) -m pytest -m real $(ARGS)

drill: ## mixed load on a real kube-apiserver while every part is killed, stopped and restarted: TIME=5m SEED=7
	@PYTHON="$(PYTHON)" ./scripts/install dev
	@$(PY) -m tests.testbeds.install kube
	@$(PY) -m tests.drill --time $(or $(TIME),5m) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: ## formatting, lint, types, who imports whom, and a part of the model check
	@PYTHON="$(PYTHON)" ./scripts/install dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mypy localcluster tui
	.venv/bin/lint-imports
	$(PY) scripts/model_check.py --quick --if-installed

simulate: ## the real sidecars, agent and controller in virtual time under faults: SEEDS=200 (SEED=7 replays one)
	@PYTHON="$(PYTHON)" ./scripts/install dev
	$(PY) -m tests.simulation $(if $(SEED),--seed $(SEED) --history,--seeds $(or $(SEEDS),200) -j $(or $(JOBS),0)) $(ARGS)

bench: ## the benchmarks, one after the other
	@PYTHON="$(PYTHON)" ./scripts/install dev
	@set -e; for file in benchmarks/[a-z]*.py benchmarks/*/__main__.py; do \
		name=$$(basename "$${file%/__main__.py}" .py); echo "== benchmarks.$$name"; $(PY) -m "benchmarks.$$name" $(ARGS); \
	done

model-check: ## the claim protocol under SPIN, in every configuration, and mistakes that it must catch (15 minutes; ARGS=--quick)
	@$(or $(PYTHON),python3) scripts/model_check.py $(ARGS)

manifests: ## what is generated under manifests/: dashboards, and the chart as plain objects
	@PYTHON="$(PYTHON)" ./scripts/install dev
	$(PY) -m tests.testbeds.install chart
	./scripts/manifests

docs: ## the reference pages anew from the sources, and the site in site/
	@PYTHON="$(PYTHON)" ./scripts/install dev
	@PYTHON="$(PYTHON)" ./scripts/install docs
	$(PY) scripts/reference.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

release: ## what would be published, in dist/: sdist, wheel, krew's archive and manifest, the chart
	@PYTHON="$(PYTHON)" ./scripts/install dev
	$(PY) scripts/release.py

lock: ## requirements.lock anew from pyproject.toml, at the newest versions
	@PYTHON="$(PYTHON)" ./scripts/install dev
	$$(command -v uv || echo .venv/bin/uv) pip compile pyproject.toml --extra dev --extra docs --universal --python-version 3.11 \
		--upgrade --no-header --quiet --output-file requirements.lock

clean: ## remove .venv and what tools left
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
