# thinwire: two commands matter, `make demo` and `make test`; both do all set-up themselves.
# The environment lies outside the clone under a hash of the lock, so that every clone of the same lock shares it.
PYTHON ?= python3
LOCK := requirements.lock
KEY := $(shell cat $(LOCK) | sha256sum | cut -c1-12)-$(shell $(PYTHON) -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
ENV ?= $(or $(THINWIRE_ENV),$(HOME)/.cache/thinwire/env-$(KEY))
PY := PYTHONPATH="$(CURDIR)" "$(ENV)/bin/python"
.DEFAULT_GOAL := help

.PHONY: help setup demo test test-fast lint format figures families study stubs edge-size wheels fuzz edge-binary print-env clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(ENV)/.ready ## install the locked environment, write .venv/bin/thinwire-*, build the coder where there is a compiler
	@"$(ENV)/bin/python" scripts/link_env.py "$(ENV)"
	@"$(ENV)/bin/python" scripts/build_native.py

$(ENV)/.ready: $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "thinwire needs Python 3.11+: make PYTHON=python3.12 ..."; exit 1; }
	@mkdir -p "$(dir $(ENV))"
	@echo "installing the locked environment into $(ENV) (about 6 GB, 2 minutes)"
	@if [ ! -f "$@" ]; then rm -rf "$(ENV)"; fi
	$(PYTHON) -m venv "$(ENV)"
	"$(ENV)/bin/python" -m pip install --quiet --disable-pip-version-check -r $(LOCK)
	@touch "$@"

demo: setup ## server up, edge classifies real photographs, table and report
	@$(PY) -m benchmarks.demo.run

test: setup ## all tests; lists what took over 10 s, which the marker `slow` is for
	@$(PY) -m pytest -p no:cacheprovider -n 2 --dist loadscope --durations=30 --durations-min=10

TESTS ?= tests/thinwire tests/edge tests/synthesis tests/cloud
test-fast: setup ## the tests of wire, device and service without slow ones; TESTS=tests/x.py for one file
	@$(PY) -m pytest -p no:cacheprovider -n 2 --dist loadscope -m "not slow" $(TESTS)

lint: setup ## ruff, import contracts, buf lint, stubs as generated
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@PATH="$(ENV)/bin:$$PATH" PYTHONPATH="$(CURDIR)" lint-imports --no-cache
	@cd proto && "$(ENV)/bin/buf" lint
	@$(PY) scripts/generate_stubs.py --check
	@$(PY) scripts/grafana_dashboard.py --check

format: setup ## rewrite the code in the house format
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

figures: setup ## write the tables of README.md from benchmarks/results
	@$(PY) scripts/readme_figures.py

families: setup ## train the codec families with equal minutes, to compare them (docs/families.md)
	@$(PY) scripts/train_families.py

study: setup ## every experiment on ../shared/data, then the report (docs/benchmarks.md)
	@$(PY) -m benchmarks.cli study --data-dir ../shared/data --out reports/study

stubs: setup ## regenerate thinwire/v1 from proto/
	@$(PY) scripts/generate_stubs.py

edge-size: setup ## install the edge extra alone, print its size, classify with it
	@$(PY) scripts/edge_size.py

wheels: setup ## wheels for Linux, macOS and Windows, and the sdist, in dist/
	@$(PY) scripts/build_wheels.py

fuzz: setup ## ten million damaged packets at the compiled coder, with sanitizers (needs clang)
	@$(PY) scripts/fuzz_native.py

edge-binary: setup ## the edge client as one file, dist/thinwire-edge.pyz
	@$(PY) scripts/edge_binary.py

print-env:
	@echo "$(ENV)"

clean: ## remove what builds left in the clone
	rm -rf .venv build dist reports .ruff_cache .hypothesis thinwire/_coder*.so
