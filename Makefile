# Two targets share one .venv, each with its own stamp: a second call installs nothing.

PHOTO ?= $(CURDIR)/mgie_jax/assets/photos/pavilion.jpg
INSTRUCTION ?= make it look like it was taken at night
OUT ?= $(CURDIR)/out/edited.png
PYTHON ?=

# Read by the recipes as shell variables, so that spaces and quotes in them need no care.
export PHOTO INSTRUCTION OUT PYTHON

.DEFAULT_GOAL := help
.PHONY: help edit test test-slow parity lint clean
.DELETE_ON_ERROR:

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18
	@echo "  make edit PHOTO='my photo.jpg' INSTRUCTION='make it warmer' OUT=edited.png"

edit: .venv/.installed  ## edit a photo: PHOTO=..., INSTRUCTION=..., OUT=...
	@mkdir -p "$$(dirname "$$OUT")"
	@.venv/bin/mgie edit -o "$$OUT" --compare -- "$$PHOTO" "$$INSTRUCTION"

# Two processes: most tests compile, which takes one core. A file's tests share what its fixtures made; files go in
# their order, for the reordering of xdist leaves long ones of few tests to the end, for one process.
test: .venv/.installed-dev  ## install the development tools, run the tests
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/.installed-dev  ## the tests that take minutes: killed runs, many processes and devices
	.venv/bin/python -m pytest -m 'slow and not parity' tests/slow

parity: .venv/.installed-dev  ## compare full-size networks with PyTorch's: minutes, 8 GiB of memory
	.venv/bin/python -m pytest -m parity tests/slow

lint: .venv/.installed-dev  ## check the style
	.venv/bin/ruff check .
	.venv/bin/ruff format --check --quiet .

clean:  ## remove build leftovers, caches and out/ (.venv stays)
	rm -rf build dist out *.egg-info .pytest_cache .ruff_cache
	find mgie_jax tests configs -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: setup.py pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --disable-pip-version-check --quiet -e .
	@touch $@

.venv/.installed-dev: setup.py pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	@touch $@

# A name on PATH may be a pyenv shim that cannot run, hence each candidate is tried, not only looked up.
.venv/bin/python:
	@for python in $${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating .venv with $$("$$python" --version); the first installation takes a few minutes."; \
	    "$$python" -m venv .venv && exit 0; \
	    rm -rf .venv; \
	  fi; \
	done; \
	echo "error: no Python 3.11 or newer with venv found; install one, or name it: make PYTHON=/path/to/python" >&2; \
	exit 1
