# Every target does its own set-up, once: what is installed is installed again only when what it depends on changed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PACKAGE := $(shell find src -type f -not -name '*.pyc' 2>/dev/null)

export PYTHON
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## this text
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

KERNELS := $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.py' -o -name '*.toml' -o -name 'CMakeLists.txt')

$(VENV)/.installed: pyproject.toml constraints.txt scripts/install.sh $(KERNELS)
	@# The CUDA libraries that torch brings on Linux are several gigabytes; nothing here needs a GPU.
	scripts/install.sh $(VENV) --editable '.[dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed  ## everything that working on foveal needs, into .venv

demo/.venv/.installed: pyproject.toml constraints.txt scripts/install.sh $(PACKAGE) $(KERNELS)
	scripts/install.sh demo/.venv '.[native]'
	@touch $@

.PHONY: demo
demo: demo/.venv/.installed  ## an install without torch, the sample pictures ×4, and a page of before and after
	demo/.venv/bin/python scripts/demo.py

.PHONY: test
test: setup  ## the fast suite
	$(BIN)/pytest -n auto

.PHONY: browser
browser: setup  ## the tests of the page in a browser; they need chromium and chromedriver
	$(BIN)/pytest -m browser -n0 tests/serve

# The same lines, in the same order, as .pre-commit-config.yaml; a test compares them.
.PHONY: lint
lint: export PATH := $(BIN):$(PATH)
lint: setup  ## format, lint, types, docstrings, spelling, the walls between folders, large files
	ruff format --check .
	ruff check .
	mypy
	pydoclint --config=pyproject.toml src
	codespell
	lint-imports
	python scripts/large_files.py

.PHONY: docs
docs: setup  ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@! grep -rlE '<(script|link|img)[^>]+(src|href)="?https?://[^">]+\.(js|css|woff2?|png|svg)' site --include='*.html' \
	  || { echo 'these pages fetch something from elsewhere; the site must show without a network' >&2; exit 1; }

.PHONY: bench
bench: setup  ## every bundle × every engine, into results/restore.md and .json
	$(BIN)/python bench/restore.py --save results/restore

.PHONY: picture
picture: setup  ## README's before and after and the gallery, with their measured figures
	$(BIN)/python scripts/before_after.py

.PHONY: counts
counts: setup  ## README's sentence of the catalogue
	$(BIN)/python -m foveal.catalogue README.md

.PHONY: constraints
constraints: setup  ## constraints.txt, resolved anew: names and versions for every platform
	$(BIN)/python -m uv pip compile pyproject.toml --extra dev --extra nncf --universal --python-version 3.11 --upgrade \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package foveal-kernels --quiet --output-file constraints.txt

.PHONY: dist
dist: setup  ## what an index would get, into dist/: the kernels by their version, not by a path
	FOVEAL_KERNELS="==$$(sed -n 's/^version = "\(.*\)"/\1/p' kernels/pyproject.toml)" $(BIN)/python -m hatchling build -d dist

.PHONY: clean
clean:  ## what was built, but no environment
	rm -rf build dist site demo/*.png demo/*.html .pytest_cache .ruff_cache .mypy_cache
