# Works from any folder: the instance's history (.dagster/) follows the folder that Dagster is started in.
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
PYTHON ?= python3
BIN := $(ROOT)/.venv/bin
PORT ?= 3000
# The deployment that `make ui` opens: CONFIG=..., else the demo's when it has been built, else the built-in one.
CONFIG ?= $(firstword $(wildcard $(ROOT)/.demo/deployment.yaml) $(ROOT)/pipeline/deployment.yaml)

# Tests of one file stay in one process; the longest begin first.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

.PHONY: install demo ui test test-slow lint bench clean

install: $(ROOT)/.venv/.installed

$(ROOT)/.venv/.installed: $(ROOT)/pyproject.toml $(ROOT)/constraints.txt
	$(PYTHON) -m venv $(ROOT)/.venv
	cd $(ROOT) && $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	cd $(ROOT) && $(BIN)/hourllava demo

ui: install
	@echo "opening the deployment of $(CONFIG) on http://127.0.0.1:$(PORT) (CONFIG=... opens another)"
	cd $(ROOT) && HOURLLAVA_CONFIG="$(CONFIG)" $(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p $(PORT)

test: install
	cd $(ROOT) && $(BIN)/pytest -q $(SIDE_BY_SIDE) -m "not slow"

test-slow: install
	cd $(ROOT) && $(BIN)/pytest -q $(SIDE_BY_SIDE) -m slow

lint: install
	cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy

bench: install
	cd $(ROOT) && for script in benchmarks/*.py; do $(BIN)/python -m benchmarks.$$(basename $$script .py) --preset tiny || exit 1; done

clean:
	rm -rf $(ROOT)/.demo $(ROOT)/.dagster
