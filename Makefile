# One command per intention; each sets up .venv by itself when it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# One thread a process: several processes share the machine, and each owns its cores.
export OMP_NUM_THREADS ?= 1

# Tests that start neither Ray nor a browser share the cores; the others have them to themselves.
FAST := -m "not ray and not browser and not chaos" -n auto --maxprocesses 4 --dist loadfile
# Browser tests need Chromium; without it they are left out, and said so.
CHROMIUM := $(shell command -v chromium 2>/dev/null)
ifeq ($(CHROMIUM),)
SLOW := -m "ray and not browser and not chaos"
else
SLOW := -m "(ray or browser) and not chaos"
endif

.PHONY: help setup demo test test-fast test-chaos test-netns lint format types bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## create .venv with everything that the other targets need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (about 7 GB, most of it torch; a few minutes)"
	$(BIN)/python -m pip install --quiet -e '.[ray,serve,dev]' -c constraints.txt
	@touch $(STAMP)

demo: $(STAMP)  ## the whole platform on synthetic people; writes demo/report.html
	$(BIN)/python jobs/demo.py

test: $(STAMP)  ## every test, with real Ray clusters on this machine
ifeq ($(CHROMIUM),)
	@echo "chromium is not installed: browser tests are left out"
endif
	$(BIN)/python -m pytest $(FAST)
	$(BIN)/python -m pytest $(SLOW)

test-fast: $(STAMP)  ## tests that start neither Ray nor a browser
	$(BIN)/python -m pytest $(FAST)

test-chaos: $(STAMP)  ## what takes minutes: everything that may die, whole jobs on clusters and stores
	$(BIN)/python -m pytest -m chaos tests/chaos tests/rayhmr

test-netns: $(STAMP)  ## training across two network namespaces whose link is cut; needs root
	$(BIN)/python -m pytest -m chaos tests/netns

# ruff without its cache, which keeps verdicts that a change in another file made wrong.
lint: $(STAMP)  ## style and import rules
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(STAMP)  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## static types
	$(BIN)/mypy

bench: $(STAMP)  ## speed, as ratios measured in one run
	$(BIN)/python jobs/benchmark.py

clean:  ## remove what the targets made, except .venv
	rm -rf demo runs shards registry predictions build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
