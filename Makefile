# Every target below first creates .venv from constraints.txt if necessary.
#   PYTHON=python3.12   the interpreter used for .venv          ARGS="..."   passed on to the command of the target
PYTHON ?= python3
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
OLDEST := .venv-oldest
OLDEST_TORCH := 2.11.0
DOCS := .venv-docs
PIN := $(shell sed -n 's/^torch==//p' constraints.txt)

# Ignore settings of an environment that is active in the caller's shell.
unexport PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV __PYVENV_LAUNCHER__

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test sanitize test-full test-oldest gpu lint format tables docs package clean FORCE

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ok  ## create .venv with the pinned packages; other targets do this when needed

demo: $(VENV)/.ok  ## train a CNN and graph networks on the same embedded digits; no download
	@rm -f runs/digits_pair.jsonl
	$(PY) -m experiments.images.digits_pair --results runs/digits_pair.jsonl $(ARGS)

test: $(VENV)/.ok  ## run the quick tests and the examples in all docstrings, one process per core
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

# Little optimisation and a single instruction set keep this to minutes. libstdc++ is preloaded for torch's exceptions.
SANITIZE := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -DGCONV_BASE
SANITIZED := $(CURDIR)/build/sanitize/gconv/kernels
SANITIZED_TESTS := $(patsubst %,tests/test_%.py,attention_kernels joint_attention scatter kernel_entries kernels order)

sanitize: $(VENV)/.ok  ## run the tests of the compiled kernels with gcc's address and undefined-behaviour sanitizers
	@test -f "$$(gcc -print-file-name=libasan.so 2>&1)" || { echo "make sanitize needs gcc with libasan, which was not found"; exit 1; }
	rm -rf build/sanitize
	CC=gcc GCONV_CFLAGS="$(SANITIZE)" $(PY) setup.py -q build_ext --build-lib build/sanitize --build-temp build/sanitize/temp
	@ls $(SANITIZED)/_csr*.so
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	  GCONV_KERNELS_LIBRARY="$$(ls $(SANITIZED)/_csr*.so)" $(PY) -m pytest -q --timeout 900 -k "not opcheck and not torch" \
	  $(SANITIZED_TESTS) $(ARGS)

# All slow tests take hours on two cores, so they run in an order drawn with GCONV_TEST_SEED until the time is over.
MINUTES ?= 15
test-full: $(VENV)/.ok  ## run the quick tests, slow tests for MINUTES=15, drawn at random, and random cases for 3 minutes
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)
	$(PY) -m pytest -n auto -m slow --minutes $(MINUTES) $(ARGS)
	$(PY) -m tests.fuzz --minutes 3 --jobs 2

test-oldest:  ## run the quick tests with the oldest supported torch, in a separate environment (.venv-oldest)
	@$(OLDEST)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(OLDEST)
	@grep -v -e '^torch==' -e '^setuptools==' constraints.txt > $(OLDEST)/constraints.txt
	@echo 'torch==$(OLDEST_TORCH)' >> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -q --disable-pip-version-check -c $(OLDEST)/constraints.txt -e '.[test]'
	$(OLDEST)/bin/python -m pytest -n auto --dist loadfile --deselect tests/test_architecture.py::test_torch_is_the_pinned_one $(ARGS)

# Installs nothing, so it works without a network. Uses .venv if it exists, else PYTHON.
DEVICE ?= cuda
gpu:  ## run checks, timings or training on a GPU: make gpu OUT=DIR PART=tests, speed or ladder; dry run: DEVICE=cpu TINY=1
	@test -n "$(OUT)" -a -n "$(PART)" || { echo "make gpu needs OUT=DIR and PART=tests, speed or ladder"; exit 1; }
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m experiments.gpu --out "$(OUT)" --part "$(PART)" --device $(DEVICE) \
	  $(if $(DATA),--data "$(DATA)") $(if $(TINY),--tiny) $(ARGS)

lint: $(VENV)/.ok  ## check with ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.ok  ## fix and format the code with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

tables: $(VENV)/.ok  ## render tables (README, docs/) and figures from experiments/results/*.jsonl
	$(PY) -m experiments.tables $(ARGS)

docs: $(DOCS)/.ok  ## build the site docs/_build/html and execute every page and figure; about three minutes
	OMP_NUM_THREADS=1 $(DOCS)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html $(ARGS)
	$(DOCS)/bin/python docs/ext/check_site.py docs/_build/html
	$(DOCS)/bin/python docs/ext/check_browser.py docs/_build/html
	@echo "open docs/_build/html/index.html"

# Sphinx and its dependencies, in an environment that can import the packages of .venv but does not change them.
$(DOCS)/.ok: $(VENV)/.ok docs/requirements.txt
	@rm -f $@
	@$(DOCS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(DOCS)
	@$(PY) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(DOCS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	@$(DOCS)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -r docs/requirements.txt
	@touch $@

package: $(VENV)/.ok  ## build wheel and sdist in dist/, and test the wheel in a fresh environment outside the repository
	$(PY) -m tests.package $(ARGS)

clean:  ## remove environments, caches and builds; keep results and data
	rm -rf $(VENV) $(OLDEST) $(DOCS) docs/_build docs/operators docs/examples docs/reference build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find gconv datasets experiments tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamp file is removed first and written last, so that an interrupted set-up is repeated by the next make.
# A .venv without a working python (interrupted, or its interpreter was removed) is recreated.
$(VENV)/.ok: pyproject.toml constraints.txt setup.py $(wildcard gconv/kernels/csr*) $(if $(wildcard $(PY)),,FORCE)
	@rm -f $@
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("gconv needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % v[:2])'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "setting up $(VENV): about a minute, longer if packages have to be downloaded"
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@$(PY) -c 'import torch; v = torch.__version__; v.split("+")[0] == "$(PIN)" or __import__("sys").exit("set-up failed: torch " + v + " is installed, constraints.txt pins $(PIN)")'
	@touch $@

FORCE:
