# Works from any folder: the instance's history (.dagster/) follows the folder that Dagster is started in.
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
PYTHON ?= python3
BIN := $(ROOT)/.venv/bin
PORT ?= 3000
# The deployment that `make ui` opens: CONFIG=..., else the demo's when it has been built, else the built-in one.
CONFIG ?= $(firstword $(wildcard $(ROOT)/.demo/deployment.yaml) $(ROOT)/pipeline/deployment.yaml)

# Tests of one file stay in one process. The demo fills two cores by itself, so what asks for it runs alone.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadgroup

.PHONY: install demo ui test test-slow lint bench browser screenshots clean

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
	cd $(ROOT) && $(BIN)/pytest -q $(SIDE_BY_SIDE) -m "slow and not demo"
	cd $(ROOT) && $(BIN)/pytest -q -m demo

lint: install
	cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy

bench: install
	cd $(ROOT) && for script in $$(grep -l '"--preset"' benchmarks/*.py); do $(BIN)/python -m benchmarks.$$(basename $$script .py) --preset tiny || exit 1; done

# Debian's Chromium for the browser tests and the screenshots, where there is none yet.
browser:
	@command -v chromium > /dev/null || { \
		[ "$$(id -u)" = 0 ] || as_root=sudo; \
		$$as_root apt-get update -qq && \
		$$as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; \
	}

screenshots: install browser
	cd $(ROOT) && $(BIN)/python -m docs.screenshots

clean:
	rm -rf $(ROOT)/.demo $(ROOT)/.dagster
