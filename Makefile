# make serve       serve repos/ at http://127.0.0.1:8080/ (ARGS="--port 9000" and the like)
# make test        everything that CI runs: format, lint, types, all tests
# make test-fast   the tests that need no server and no git beside each case: under a minute
# make check       format, lint, types, the fast tests
# make fix         format, and fix what the linter can
# make native      compile the optional native module anew where its sources changed (make does so by itself)
# make native-asan the native module's tests under AddressSanitizer and UBSan
# make bench       measure beside git-http-backend (ARGS="--quick", ARGS="--repo PATH"), or BENCH=another of benchmarks/
#
# All of them need python3 (3.11 or newer) with venv, and git; the rest is installed into .venv, and again only when
# pyproject.toml or the native module's sources change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= 2
BENCH ?= bench
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: serve test test-fast check fix bench static native native-asan needs clean

# What .venv is made from. A library made from other sources is refused when it is loaded.
INSTALLED_FROM := pyproject.toml setup.py $(wildcard gitsmart/native/*.[ch]) gitsmart/native/build.py

serve: $(VENV)/.installed
	@mkdir -p repos
	@test -n "$$($(BIN)/gitsmart list repos)" || $(BIN)/gitsmart init demo --root repos
	@exec $(BIN)/gitsmart serve repos $(ARGS)

test: static
	$(BIN)/python -m pytest -n $(JOBS)
	$(BIN)/python -m pytest -q --doctest-modules gitsmart

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

check: static test-fast

static: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

native:
	@$(PYTHON) gitsmart/native/build.py

native-asan: $(VENV)/.installed-dev
	$(BIN)/python tests/native/sanitize.py

clean:
	rm -rf gitsmart/native/_native.so $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.installed: $(INSTALLED_FROM) | needs
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing gitsmart into $(VENV)"
	@$(BIN)/python -m pip install -q -e '.[fast]'
	@touch $@

$(VENV)/.installed-dev: $(INSTALLED_FROM) | needs
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing gitsmart and what its tests need into $(VENV)"
	@$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $(VENV)/.installed $@

needs:
	@command -v $(PYTHON) >/dev/null || { echo "gitsmart needs python3, 3.11 or newer (Debian, Ubuntu: apt install python3 python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gitsmart needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -c 'import platform; print(platform.python_version())'): try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "gitsmart needs Python's venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@command -v git >/dev/null || { echo "git is missing: make test runs it, and you will want it to clone (Debian, Ubuntu: apt install git)" >&2; exit 1; }
