# thinwire: two commands matter, `make demo` and `make test`; both do all set-up themselves.
# Environments lie outside the clone under a hash of their lock, so that every clone of the same lock shares them. The
# light one has no PyTorch: the demo's edge and cloud, with ONNX Runtime.
PYTHON ?= python3
LOCK := requirements.lock
LIGHT_LOCK := requirements-light.lock
VERSION := $(shell $(PYTHON) -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
KEY := $(shell cat $(LOCK) | sha256sum | cut -c1-12)-$(VERSION)
LIGHT_KEY := $(shell cat $(LIGHT_LOCK) | sha256sum | cut -c1-12)-$(VERSION)
ENV ?= $(or $(THINWIRE_ENV),$(HOME)/.cache/thinwire/env-$(KEY))
LIGHT_ENV ?= $(or $(THINWIRE_LIGHT_ENV),$(HOME)/.cache/thinwire/light-$(LIGHT_KEY))
PY := PYTHONPATH="$(CURDIR)" "$(ENV)/bin/python"
LIGHT_PY := PYTHONPATH="$(CURDIR)" "$(LIGHT_ENV)/bin/python"
.DEFAULT_GOAL := help

.PHONY: help setup light demo test test-fast lint format figures families study stubs edge-size wheels fuzz edge-binary print-env clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(ENV)/.ready ## install the full locked environment, write .venv/bin/thinwire-*, build the coder where there is a compiler
	@"$(ENV)/bin/python" scripts/link_env.py "$(ENV)"
	@"$(ENV)/bin/python" scripts/build_native.py

$(ENV)/.ready: $(LOCK)
	$(call install,$(ENV),$(LOCK),about 6 GB with PyTorch,$@,)

light: $(LIGHT_ENV)/.ready ## install the locked environment without PyTorch, which `make demo` has
	@"$(LIGHT_ENV)/bin/python" scripts/build_native.py

# No byte code for what is never imported: that would take longer than the demo
$(LIGHT_ENV)/.ready: $(LIGHT_LOCK)
	$(call install,$(LIGHT_ENV),$(LIGHT_LOCK),about 0.4 GB,$@,--no-compile)

# Environment, lock, size, stamp, flags of pip. The lock names everything, so there is nothing to resolve
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "thinwire needs Python 3.11+: make PYTHON=python3.12 ..."; exit 1; }
@mkdir -p "$(dir $(1))"
@echo "installing $(2) into $(1) ($(3))"
@if [ ! -f "$(4)" ]; then rm -rf "$(1)"; fi
$(PYTHON) -m venv "$(1)"
"$(1)/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps $(5) -r $(2)
@touch "$(4)"
endef

demo: light ## server up, edge classifies real photographs, table and report; without PyTorch
	@$(LIGHT_PY) -m benchmarks.demo.run

test: setup light ## all tests; lists what took over 10 s, which the marker `slow` is for
	@THINWIRE_LIGHT_ENV="$(LIGHT_ENV)" $(PY) -m pytest -p no:cacheprovider -n 2 --dist loadscope --durations=30 --durations-min=10

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
	@$(PY) scripts/light_lock.py --check

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
