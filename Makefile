# `make` alone lists what there is.
PYTHON ?= python3
TORCH  ?= 2.13.0
UPGRADE ?= --upgrade
PORT   ?= 8000
PYTHONS ?= $(PYTHON)

BIN   := .venv/bin
READY := .venv/.ready
BOOK  := _build/html
COLAB := _build/colab/base
# The formulas and the parts of pages: what needs no framework.
SUBJECT := $(filter-out doctor pipeline,$(patsubst dlopt_helpers/%.py,%,$(wildcard dlopt_helpers/[a-z]*.py)))
PURE = $(foreach name,$(SUBJECT),dlopt_helpers/$(name).py tests/test_$(name).py) tests/test_trace.py \
  $(foreach name,claims exercises explorer recurrence source,tests/page/test_$(name).py) \
  tests/test_project.py::test_import_loads_no_framework \
  tests/lab/test_published.py::test_each_line_is_of_this_code
# One thread: small networks gain nothing from two. No colours, bars or notes of the frameworks in logs.
export OMP_NUM_THREADS = 1
export OPENBLAS_NUM_THREADS = 1
# Sweeps train on all cores, one process on each. One that has grown is replaced; joblib warns of it, and the
# book allows no warning.
CORES := $(shell getconf _NPROCESSORS_ONLN)
export DLOPT_JOBS ?= $(CORES)
export PYTHONWARNINGS = ignore:A worker stopped while some jobs:UserWarning
export TF_CPP_MIN_LOG_LEVEL = 3
export TF_ENABLE_ONEDNN_OPTS = 0
export PYDEVD_DISABLE_FILE_VALIDATION = 1
# While the book and the tests run, Python refuses every connection beyond this machine.
OFFLINE := PYTHONPATH=$(CURDIR)/tests/no_network
# Files of tests spread over the cores, up to four: each process loads both frameworks, over 1 GB.
SPREAD := DLOPT_JOBS=1 $(BIN)/pytest -n $(shell echo $$(($(CORES) < 4 ? $(CORES) : 4))) --dist loadfile

say = @printf '\n== %s\n' "$(1)"

.PHONY: help book serve lab test lint again claims lock mutants colab pythons bench bundle exercises slides fork clean _build

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(READY): requirements.lock pyproject.toml postBuild
	$(call say,Setting up .venv with the pinned packages. The first time takes some minutes.)
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed. Name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv is missing. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@sh postBuild $(BIN)/python >.venv/pip.log 2>&1 \
	  || { grep -v '^WARNING' .venv/pip.log | tail -n 20; echo "The whole log: .venv/pip.log"; exit 1; }
	@mkdir -p .venv/etc/ipython # kernels need not warn that loopback is not encrypted
	@echo 'c.IPKernelApp.log_level = 40' >.venv/etc/ipython/ipython_kernel_config.py
	@touch $@

_build: $(READY)
	$(call say,Executing and building the book)
	@$(OFFLINE) $(BIN)/jupyter-book build . -W --keep-going --quiet

book: _build ## build the book (sets everything up first)
	@printf '\nOpen file://%s in a browser, or run: make serve\n' "$(CURDIR)/$(BOOK)/index.html"

serve: _build ## build the book and serve it on this machine
	@printf '\nOpen http://127.0.0.1:$(PORT) (stop with Ctrl-C)\n'
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(BOOK) $(PORT) >/dev/null 2>&1

lab: $(READY) ## open the chapters in JupyterLab
	@$(BIN)/jupyter lab chapters

lint: $(READY) ## check style and the rooms' imports
	$(call say,Lint)
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache

test: $(READY) ## run every check, from lint to the built pages
	$(call say,Chromium)
	@sh tests/chromium.sh $(BIN)/python
	@$(MAKE) --no-print-directory lint _build
	$(call say,Tests of the package and the notebooks and the built pages)
	@CHROMIUM="$$(sh tests/chromium.sh $(BIN)/python)" $(OFFLINE) $(SPREAD)
	$(call say,Chapters in fresh kernels)
	@$(OFFLINE) TQDM_DISABLE=1 DLOPT_TRAIN=$(or $(DLOPT_TRAIN),never) $(SPREAD) --nbval-lax \
	  --nbval-kernel-name python3 --nbval-cell-timeout 1800 --nbval-sanitize-with tests/sanitize.cfg --timeout 0 chapters
	@printf '\nAll checks passed.\n'

exercises: $(READY) ## write the exercises of each chapter as notebooks, to answer and with solutions
	@$(BIN)/python -m dlopt_helpers.page.handouts chapters/*.ipynb

slides: $(READY) ## make the slides anew from the book as it was built
	@$(BIN)/python -m dlopt_helpers.page.slides

claims: $(READY) ## execute the chapters, store what they train and what their claims print
	@rm -rf _build/noted
	@$(OFFLINE) TQDM_DISABLE=1 DLOPT_NOTED=$(CURDIR)/_build/noted \
	  $(BIN)/python -m dlopt_helpers.page.notebooks chapters/*.ipynb
	@$(BIN)/python -m dlopt_helpers.lab.published _build/noted

# Of torch the wheel that pip takes here may be another than those of the index: its hash is added. The packages
# that torch's CUDA build wants are left out; see postBuild.
lock: ## pin the newest packages in requirements.lock (UPGRADE= keeps what is pinned)
	$(call say,Resolving for every system and each Python)
	@$(PYTHON) -m venv _build/lock
	@_build/lock/bin/python -m pip install uv >_build/lock/log 2>&1 || { tail _build/lock/log; exit 1; }
	@cp requirements.lock _build/lock/all
	@_build/lock/bin/uv pip compile $(UPGRADE) $(TORCH:%=--upgrade-package torch==%) --all-extras --universal \
	  --python-version 3.11 --generate-hashes --strip-extras --no-header --no-annotate \
	  --output-file _build/lock/all pyproject.toml >_build/lock/log 2>&1 || { tail _build/lock/log; exit 1; }
	@torch=$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' _build/lock/all); \
	  _build/lock/bin/python -m pip install --dry-run --quiet --no-deps --ignore-installed \
	    --report _build/lock/torch.json "$$torch" >_build/lock/log 2>&1 || { tail _build/lock/log; exit 1; }
	@here=$$(sed -n 's/.*"sha256": "\(.*\)".*/\1/p' _build/lock/torch.json | head -n 1); \
	  ! grep -q "$$here" _build/lock/all || here=; \
	  awk -v here="$$here" 'BEGIN { print "# Made by `make lock`: what the book is built and tested with." } \
	    /^[a-z]/ { keep = !/^(nvidia-|cuda-|triton)/ } keep; \
	    /^torch==/ && here { print "    --hash=sha256:" here " \\" }' _build/lock/all >_build/lock/new
	@mv _build/lock/new requirements.lock
	@$(MAKE) --no-print-directory $(READY)
	@$(BIN)/python tests/licences.py >_build/lock/new
	@mv _build/lock/new LICENSES/dependencies.md

again: _build ## build the book once more, from nothing, and compare the pages
	$(call say,Training and building anew)
	@rm -rf _build/again
	@DLOPT_TRAIN=always DLOPT_CACHE=$(CURDIR)/_build/again/kept $(OFFLINE) \
	  $(BIN)/jupyter-book build . -W --keep-going --quiet --path-output _build/again
	@$(BIN)/python tests/reproduce.py $(BOOK) _build/again/_build/html

mutants: $(READY) ## plant famous faults, see which test catches each (JOBS=2 at once)
	@$(OFFLINE) $(BIN)/python tests/mutants.py

$(COLAB)/.ready: tests/colab.txt
	$(call say,Installing the packages of Colab)
	@$(PYTHON) -m venv --clear $(COLAB)
	@{ $(COLAB)/bin/python -m pip install $$(grep '^torch=' $<) \
	  && $(COLAB)/bin/python -m pip install --no-deps -r $<; } >$(COLAB)/pip.log 2>&1 \
	  || { tail -n 20 $(COLAB)/pip.log; exit 1; }
	@touch $@

colab: $(READY) $(COLAB)/.ready ## run chapters as on Colab: make colab CHAPTERS='03_* 06_faq'
	$(call say,Chapters in a copy of Colab)
	@$(BIN)/python tests/colab.py $(foreach name,$(CHAPTERS),'$(name)')

pythons: ## test what needs no framework: make pythons PYTHONS='python3.12 python3.13'
	@set -e; for python in $(PYTHONS); do \
	  printf '\n== %s\n' "$$($$python --version)"; \
	  room=_build/pythons/$$($$python -c 'import platform; print(platform.python_version())'); \
	  $$python -m venv --clear $$room; \
	  $$room/bin/python -m pip install -q $$($$python -c 'import tomllib; print(*tomllib.load( \
	    open("pyproject.toml", "rb"))["project"]["dependencies"])') hypothesis pytest pytest-timeout pyyaml; \
	  PYTHONPATH=tests $$room/bin/python -m pytest -p no_frameworks $(PURE); \
	done

bench: $(READY) ## measure: each script of benchmarks/ prints ratios and their spread
	@set -e; for script in benchmarks/*.py; do printf '\n== %s\n' "$$script"; $(BIN)/python "$$script"; done

fork: ## give your copy another repository: make fork REPO=owner/name
	@$(PYTHON) -m dlopt_helpers.page.fork "$(REPO)"

bundle: _build exercises ## pack the book for a room without internet, and try it there
	$(call say,Packing. Then installing it without a network)
	@CHROMIUM="$$(sh tests/chromium.sh $(BIN)/python)" PYTHONPATH=tests $(BIN)/python workshop/offline/pack.py

clean: ## remove what was built, and keep .venv
	@rm -rf _build .cache .hypothesis .pytest_cache .ruff_cache
