# The front door. Every target makes what it needs; none needs another run first.
PYTHON ?= python3
VENV := .venv
DOCS_VENV := .venv-docs
# What Sphinx needs. Nothing else does.
DOCS_PYTHON := 3.13
BENCH_VENV := .venvs/bench
# What amqpstorm needs. No peer needs a newer one.
BENCH_PYTHON := 3.11
BROKER ?= embedded
export BROKER

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-wheel dist faults soak lint docs bench clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo:  ## see a Flask app publish and get messages; BROKER=rabbitmq or BROKER=amqp://... for a real broker
	@test "$(BROKER)" != rabbitmq || scripts/ensure-rabbitmq
	@scripts/make-venv $(PYTHON) $(VENV) demo
	@$(VENV)/bin/python -m tools.demo

test:  ## run all tests, on every Python 3.10 or newer that the machine has
	@scripts/ensure-rabbitmq || true
	@scripts/ensure-chromium || true
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here: install Python 3.10 or newer"; exit 1; }
	@$(PYTHON) tools/test_all.py

test-quick:  ## run all tests on one Python
	@scripts/ensure-rabbitmq || true
	@scripts/ensure-chromium || true
	@scripts/make-venv $(PYTHON) $(VENV) test
	@$(VENV)/bin/python -m pytest

dist:  ## build the sdist, and the wheel from it, in dist
	@scripts/make-venv $(PYTHON) $(VENV) test
	@$(VENV)/bin/python -m tools.dist dist

test-wheel: dist  ## build the wheel, and run the tests of everyday use on it, on every Python
	@scripts/ensure-rabbitmq || true
	@$(PYTHON) tools/test_all.py --wheel dist/*.whl

faults:  ## do to it what a deployment does, in all rounds, and write docs/reliability.md; some 20 minutes
	@scripts/ensure-rabbitmq
	@scripts/make-venv $(PYTHON) $(VENV) test
	@$(VENV)/bin/python -m pytest tests/faults --faults=full --reliability=docs/reliability.md

soak:  ## 20 minutes under load, with memory, files, threads and connections in docs/images/soak.svg
	@scripts/ensure-rabbitmq
	@scripts/make-venv $(PYTHON) $(VENV) soak
	@$(VENV)/bin/python -m tests.faults.soak

lint:  ## ruff, mypy, and a second type checker over the public API
	@scripts/make-venv $(PYTHON) $(VENV) lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/basedpyright

docs:  ## build the documentation in docs/_build/html; a warning is an error
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here: install Python 3.10 or newer"; exit 1; }
	@python=$$($(PYTHON) -m tools.newest_python $(DOCS_PYTHON)) && scripts/make-venv "$$python" $(DOCS_VENV) docs
	@$(DOCS_VENV)/bin/python -m tools.reference --check
	@$(DOCS_VENV)/bin/python -m benchmarks.page --check
	@$(DOCS_VENV)/bin/python -m sphinx --builder html --nitpicky --fail-on-warning --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench:  ## measure it beside its peers, each in an environment of its own, and write docs/benchmarks.md; some 45 minutes
	@scripts/ensure-rabbitmq
	@scripts/ensure-wrk || true
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here: install Python 3.10 or newer"; exit 1; }
	@python=$$($(PYTHON) -m tools.newest_python $(BENCH_PYTHON)) && scripts/make-venv "$$python" $(BENCH_VENV) bench
	@$(BENCH_VENV)/bin/python -m benchmarks.broker
	@$(BENCH_VENV)/bin/python -m benchmarks.peers
	@$(BENCH_VENV)/bin/python -m benchmarks.page

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(DOCS_VENV) .venvs docs/_build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
