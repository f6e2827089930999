# What one types here. Needs Python 3.11 or newer, make and a package index; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test torture lint typecheck wheel bench bench-reports picture clean

help:  ## show this
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## the environment in .venv, with everything at its pinned version

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" % v[:2])'
	@echo "Installing into $(VENV) (a minute or two, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## a crawl session through the router, and what it cost
	@$(BIN)/bughive-costs demo

test: $(STAMP)  ## the tests, on all cores; more for pytest in ARGS="-k journal -x"
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

MINUTES ?= 10
RUNS ?= 200

torture: $(STAMP)  ## budgets in 200 storms (RUNS=), then kill -9 whatever uses a ledger, for ten minutes (MINUTES=, SEED= and ROUND= of a failure)
	@$(BIN)/python tests/budget_storm.py --runs $(RUNS)
	@$(BIN)/python tests/torture.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(ROUND),--round $(ROUND))

lint: $(STAMP)  ## style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

typecheck: $(STAMP)  ## mypy --strict
	@$(BIN)/mypy --strict

wheel: $(STAMP)  ## the wheel, in dist/
	@rm -rf build dist
	@$(BIN)/python -m build --wheel --no-isolation >build.log 2>&1 || { cat build.log; exit 1; }
	@rm -f build.log; ls dist/*.whl

bench: $(STAMP)  ## the benchmarks
	@for name in route import help report messages answer stream ledger budgets; do $(BIN)/python -m benchmarks.bench_$$name || exit 1; done

SIZES ?= 1 10

bench-reports: $(STAMP)  ## reports of ledgers of 1 and 10 million events (SIZES="1 10 100": the last takes half an hour, 10 GB)
	@$(BIN)/python -m benchmarks.bench_reports $(SIZES) $(ARGS)

picture: $(STAMP)  ## docs/nightly.png, the nightly page as README shows it; needs Chromium
	@$(BIN)/python tests/nightly_picture.py docs/nightly.png

clean:  ## remove build results and caches; .venv and data/ stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find router ledger reports tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
