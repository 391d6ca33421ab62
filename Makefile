# Set-up happens by itself: every target below first builds .venv from constraints.txt, once.
#   PYTHON=python3.12   the interpreter that makes .venv        ARGS="..."   passed on to the target's command
PYTHON ?= python3
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
OLDEST := .venv-oldest
OLDEST_TORCH := 2.11.0
DOCS := .venv-docs
PIN := $(shell sed -n 's/^torch==//p' constraints.txt)

# An active environment of the caller must not leak into ours.
unexport PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV __PYVENV_LAUNCHER__

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test sanitize test-full test-oldest gpu lint format tables docs package clean FORCE

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ok  ## make .venv with the pinned packages; the other targets do it when needed

demo: $(VENV)/.ok  ## the main experiment on embedded data, no download: grid CNN and graph networks on the same digits
	@rm -f runs/digits_pair.jsonl
	$(PY) -m experiments.images.digits_pair --results runs/digits_pair.jsonl $(ARGS)

test: $(VENV)/.ok  ## the quick test suite, with the examples in all docstrings, a process a core
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

# With little optimization and for one instruction set, so that it takes minutes. libstdc++ comes along for torch's exceptions.
SANITIZE := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -DGCONV_BASE
SANITIZED := $(CURDIR)/build/sanitize/gconv/kernels
SANITIZED_TESTS := $(patsubst %,tests/test_%.py,attention_kernels joint_attention scatter kernel_entries kernels order)

sanitize: $(VENV)/.ok  ## the tests of the compiled kernels under gcc's sanitizers of addresses and undefined behaviour
	@test -f "$$(gcc -print-file-name=libasan.so 2>&1)" || { echo "make sanitize needs gcc and its libasan, and they were not found"; exit 1; }
	rm -rf build/sanitize
	CC=gcc GCONV_CFLAGS="$(SANITIZE)" $(PY) setup.py -q build_ext --build-lib build/sanitize --build-temp build/sanitize/temp
	@ls $(SANITIZED)/_csr*.so
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	  GCONV_KERNELS_LIBRARY="$$(ls $(SANITIZED)/_csr*.so)" $(PY) -m pytest -q --timeout 900 -k "not opcheck and not torch" \
	  $(SANITIZED_TESTS) $(ARGS)

test-full: $(VENV)/.ok  ## all tests, the slow ones too, and three minutes of random cases; about 25 minutes
	$(PY) -m pytest -n auto --dist loadfile -m '' $(ARGS)
	$(PY) -m tests.fuzz --minutes 3 --jobs 2

test-oldest:  ## the quick tests on the oldest supported torch, in a large environment of its own (.venv-oldest)
	@$(OLDEST)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(OLDEST)
	@grep -v -e '^torch==' -e '^setuptools==' constraints.txt > $(OLDEST)/constraints.txt
	@echo 'torch==$(OLDEST_TORCH)' >> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -q --disable-pip-version-check -c $(OLDEST)/constraints.txt -e '.[test]'
	$(OLDEST)/bin/python -m pytest -n auto --dist loadfile $(ARGS)

# Sets nothing up: it may run where there is no network. It takes .venv where that is, else PYTHON as it is.
DEVICE ?= cuda
gpu:  ## checks, timings or training on a GPU: make gpu OUT=DIR PART=tests, speed or ladder; DEVICE=cpu TINY=1 rehearses
	@test -n "$(OUT)" -a -n "$(PART)" || { echo "make gpu takes OUT=DIR and PART=tests, speed or ladder"; exit 1; }
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m experiments.gpu --out "$(OUT)" --part "$(PART)" --device $(DEVICE) \
	  $(if $(DATA),--data "$(DATA)") $(if $(TINY),--tiny) $(ARGS)

lint: $(VENV)/.ok  ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.ok  ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

tables: $(VENV)/.ok  ## render the tables of README and docs/ and the figures from experiments/results/*.jsonl
	$(PY) -m experiments.tables $(ARGS)

docs: $(DOCS)/.ok  ## the site docs/_build/html, every page and picture executed, warnings are errors; about three minutes
	OMP_NUM_THREADS=1 $(DOCS)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html $(ARGS)
	$(DOCS)/bin/python docs/ext/check_site.py docs/_build/html
	@echo "open docs/_build/html/index.html"

# Sphinx and what it needs, in an environment that also sees the packages of .venv and changes none of them.
$(DOCS)/.ok: $(VENV)/.ok docs/requirements.txt
	@rm -f $@
	@$(DOCS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(DOCS)
	@$(PY) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(DOCS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	@$(DOCS)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -r docs/requirements.txt
	@touch $@

package: $(VENV)/.ok  ## wheel and sdist in dist/, the wheel tried in a fresh environment outside of the repository
	$(PY) -m tests.package $(ARGS)

clean:  ## remove .venv, caches and builds; results and data stay
	rm -rf $(VENV) $(OLDEST) $(DOCS) docs/_build docs/operators docs/examples docs/reference build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find gconv datasets experiments tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamp is removed first and written last, so a set-up that breaks is tried again by the next make.
# A .venv without a working python (interrupted, or its interpreter gone) is made anew.
$(VENV)/.ok: pyproject.toml constraints.txt setup.py $(wildcard gconv/kernels/csr*) $(if $(wildcard $(PY)),,FORCE)
	@rm -f $@
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("gconv needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % v[:2])'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "setting up $(VENV): about a minute, the first time longer where packages must be downloaded"
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@$(PY) -c 'import torch; v = torch.__version__; v.split("+")[0] == "$(PIN)" or __import__("sys").exit("set-up broken: torch " + v + " is installed, constraints.txt pins $(PIN)")'
	@touch $@

FORCE:
