# make env | demo | test | fuzz | imports | lint. All work in a fresh clone; the environment is built once, in .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SOHES := $(VENV)/bin/sohes
READY := $(VENV)/.ready
PYTEST_FLAGS ?= -n auto --maxprocesses 4
DEMO := output/demo
# numba, torch and OpenCV would each start a thread per core in every test process.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: help env demo test fuzz imports lint
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "make env    build .venv: torch, Detectron2 and this package (several GB to download, once)"
	@echo "make demo   label photos with entity forests on the CPU and write $(DEMO)/report.html and pictures"
	@echo "make test   run the tests (no network, no GPU)"
	@echo "make fuzz   test each command with EXAMPLES=N (2000) randomly damaged files"
	@echo "make imports  update the import graph in CONTRIBUTING.md"
	@echo "make lint   check style, imports and types: ruff, mypy"
	@echo "To use another Python than $(PYTHON): make PYTHON=python3.12 env"

env: $(READY)
	@echo "The environment is ready: $(PY)"

# The stamp is written last, so that an interrupted build is continued.
$(READY): requirements.txt setup.py sohes_d2/cli/setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: $(PYTHON) is missing or older than 3.11, which numpy in requirements.txt needs. Use a newer one:" >&2; \
	    echo "    make PYTHON=/path/to/python3.11 env" >&2; exit 1; }
	@test -x $(PY) || { echo "Creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); \
	    echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); \
	    echo "make: '$(PYTHON) -m venv' gave no pip; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing requirements.txt; torch is a large download, so this takes minutes ..."
	@$(PY) -m pip install -qq --disable-pip-version-check -r requirements.txt
	@echo "Installing this package (editable)"
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(SOHES) setup
	@touch $@

demo: $(READY)
	@$(PY) datasets/prepare_demo_images.py --output $(DEMO)/images
	@$(SOHES) label --config joint --images $(DEMO)/images --output $(DEMO)/labels.json --overwrite
	@$(SOHES) draw --labels $(DEMO)/labels.json --images $(DEMO)/images --output $(DEMO) --max-area 0.5
	@$(SOHES) show --labels $(DEMO)/labels.json --images $(DEMO)/images --output $(DEMO)/report.html

test: $(READY)
	@$(ONE_THREAD) $(PY) -m pytest $(PYTEST_FLAGS)

EXAMPLES ?= 2000
fuzz: $(READY)
	@EXAMPLES=$(EXAMPLES) $(ONE_THREAD) $(PY) -m pytest $(PYTEST_FLAGS) tests/robustness

imports: $(READY)
	@$(PY) tools/draw_imports.py

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
