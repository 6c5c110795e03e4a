# Everything starts from a fresh clone: each command makes .venv, installs, and runs.

PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# torchvision 0.16.2 is the one that imports beside a CPU build of this torch; EasyEdit asks for it
# by an import and this project computes nothing with it. On a GPU machine give the matching one.
TORCHVISION ?= torchvision==0.16.2
WITHOUT_DEPENDENCIES := $(TORCHVISION) timm==1.0.31 fairscale==0.4.13 easyeditor==0.0.1.dev0

# Tiny models are many times slower when every operator starts threads.
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2
ATTACK_MINUTES ?= 30
# What `make gpu` runs on, and the shapes that it measures; by default it looks.
DEVICE ?=
SHAPES ?=

.PHONY: help demo demo-large test matrix attack gpu bench docs lint format dist clean

help:
	@echo "make demo   edit SmolLM2-135M spread over devices, with EasyEdit (3 minutes)"
	@echo "make demo-large  edit a 7B-shaped model on disk in 3 GiB of memory (15 GB of disk)"
	@echo "make test   lint, types and tests (EASYEDIT_HOME=clone adds EasyEdit's repository)"
	@echo "make matrix run the core tests with other versions of Python, torch and transformers"
	@echo "make attack try to break it: faults, architectures, damaged files, load, kills (3 x ATTACK_MINUTES, and 45)"
	@echo "make gpu    check and measure edits on this machine's GPU (8 minutes; DEVICE=cpu SHAPES=tiny rehearses)"
	@echo "make bench  measure every figure of docs/performance.md again (90 minutes, 15 GB of disk)"
	@echo "make docs   write the configuration's tables, and build docs/_build/html"
	@echo "make lint   lint and types only"
	@echo "make format rewrite the code in the project's format"
	@echo "make dist   build the wheel and the source archive into dist/"
	@echo "make clean  remove .venv and caches"

demo: $(INSTALLED)
	PYTHONPATH=tests $(RUN) -W ignore -m easyedit_mend_parallel.demo

demo-large: $(INSTALLED)
	$(RUN) -W ignore -m easyedit_mend_parallel.demo.large

test: lint
	$(RUN) -m pytest -n $(WORKERS)

# One environment a row, kept in the user's cache folder.
matrix: $(INSTALLED)
	$(RUN) scripts/matrix.py

attack: $(INSTALLED)
	PYTHONPATH=.:tests $(RUN) -W ignore -m attack.faults --minutes $(ATTACK_MINUTES)
	PYTHONPATH=.:tests timeout $(ATTACK_MINUTES)m $(RUN) -W ignore -m attack.architectures
	PYTHONPATH=.:tests $(RUN) -W ignore -m attack.files
	PYTHONPATH=.:tests $(RUN) -W ignore -m attack.load --minutes $(ATTACK_MINUTES)
	$(RUN) -m pip install --quiet atheris
	set -e; for kind in hyperparameters facts journal edit archive "EasyEdit's archive"; do \
		PYTHONPATH=.:tests $(RUN) -W ignore -m attack.fuzz "$$kind" "tests/attack/corpus/$$kind" -max_total_time=60; \
	done
	LIFE_EXAMPLES=300 KILLS=200 $(RUN) -m pytest -q tests/test_life_of_a_model.py tests/test_journal_processes.py

gpu: $(INSTALLED)
	PYTHONPATH=tests $(RUN) -W ignore -m gpu $(if $(DEVICE),--device $(DEVICE)) $(if $(SHAPES),--shapes $(SHAPES))

bench: $(INSTALLED)
	PYTHONPATH=tests $(RUN) -W ignore -m benchmarks

docs: $(INSTALLED)
	$(RUN) scripts/document_hparams.py
	$(RUN) -m sphinx -q -n -W --keep-going docs docs/_build/html

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(INSTALLED)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

dist: $(INSTALLED)
	rm -rf dist
	$(RUN) -m build --no-isolation

$(INSTALLED): pyproject.toml requirements.txt Makefile
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON) (set PYTHON=... to name another; EasyEdit's dependencies need 3.11)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "missing: Python 3.11; $(PYTHON) is another version"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: the venv module of $(PYTHON) (on Debian: apt-get install python3.11-venv)"; exit 1; }
	@command -v g++ >/dev/null || { echo "missing: g++, for the simulated accelerators (on Debian: apt-get install g++)"; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip install --quiet --no-deps --pre $(WITHOUT_DEPENDENCIES)
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache
