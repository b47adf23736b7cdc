# Everything needs Python >= 3.11 and the package registry only. `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
WORKERS ?= auto
DIST    ?= dist
PIP     := python -m pip install --quiet --disable-pip-version-check

# Everything is pinned, so nothing is resolved here. uv installs in seconds what takes pip minutes; pip does it where uv cannot.
install = $(1)/$(PIP) uv && $(1)/uv pip install --quiet --python $(1)/python --no-deps --requirement $(2) || $(1)/$(PIP) --no-deps --requirement $(2)

.DEFAULT_GOAL := help
.PHONY: help venv demo test check unit test-pythons bench chaos blackout sim sim-many sim-scale mutants operator-day operator-load fuzz docs crds chart proto golden requirements \
	dist test-localstack prometheus clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

venv: $(VENV)/.installed ## the virtual environment .venv with pinned dependencies

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tidelog needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(call install,$(BIN),requirements.txt)
	$(BIN)/$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

test: venv check unit ## everything that CI runs

check: venv ## formatting, lints, types, layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: venv .venv-localstack/.installed prometheus
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not localstack and not alone"
	$(BIN)/python -m pytest -m alone

# One interpreter of each supported version, from PATH or from pyenv.
PYTHONS ?= $(shell for v in 11 12 13 14; do for p in python3.$$v $$(ls -d $$HOME/.pyenv/versions/3.$$v.*/bin/python 2>/dev/null | sort -rV); do \
	$$p -c "" 2>/dev/null && echo $$p && break; done; done; :)

test-pythons: ## the tests on every supported Python that this machine has
	for python in $(PYTHONS); do version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	$(MAKE) --no-print-directory unit PYTHON=$$python VENV=.venv-$$version || exit 1; done

chaos: venv ## real brokers, links, S3 and PostgreSQL under faults of every kind for MINUTES (default 5)
	CHAOS_SECONDS=$$(( $(or $(MINUTES),5) * 60 )) $(BIN)/python -m pytest -q -s tests/chaos/test_chaos.py

blackout: venv ## real brokers under load while their bucket is away for MINUTES (default 5)
	BLACKOUT_SECONDS=$$(( $(or $(MINUTES),5) * 60 )) $(BIN)/python -m pytest -q -s tests/chaos/test_blackout.py

sim: venv ## replay one simulated run, and tell what led to its first violation: make sim SEED=…
	PYTHONPATH=service:. $(BIN)/python -m tests.sim $(SEED) $(if $(SECONDS),--seconds $(SECONDS))

sim-many: venv ## many simulated runs on all cores: make sim-many SEEDS=1-200 (SECONDS=… of faults in each, default 30; MINUTES=… at most)
	PYTHONPATH=service:. $(BIN)/python -m tests.sim $(SEEDS) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(MINUTES),--minutes $(MINUTES))

sim-scale: venv ## simulate a large cluster, and write its figures into docs/reliability.md: make sim-scale (BROKERS=100 PARTITIONS=100000)
	PYTHONPATH=service:. $(BIN)/python -m tests.sim.scale --write $(if $(BROKERS),--brokers $(BROKERS)) $(if $(PARTITIONS),--partitions $(PARTITIONS))

mutants: venv ## plant every known bug, let the simulator find it, and write the table in docs/reliability.md
	PYTHONPATH=service:. $(BIN)/python -m tests.sim.mutants --write

fuzz: .venv-fuzz/.installed ## coverage-guided fuzzing of every decoder for MINUTES (default 5) in all
	PYTHONPATH=service:. .venv-fuzz/bin/python -m tests.fuzz --minutes $(or $(MINUTES),5)

.venv-fuzz/.installed: requirements.txt requirements-fuzz.txt
	$(PYTHON) -m venv --clear .venv-fuzz
	$(call install,.venv-fuzz/bin,requirements.txt)
	$(call install,.venv-fuzz/bin,requirements-fuzz.txt)
	@touch $@

operator-day: venv ## under load ROUNDS times (default 5): scale, update, evict, lose a node; an upgrade; into docs/kubernetes.md
	OPERATOR_WRITES=1 OPERATOR_ROUNDS=$(or $(ROUNDS),5) $(BIN)/python -m pytest -q -n0 -s tests/operator/test_scenarios.py tests/operator/test_upgrade.py

operator-load: venv ## brokers follow a load curve; writes the table in docs/kubernetes.md
	OPERATOR_WRITES=1 $(BIN)/python -m pytest -q -n0 -s tests/operator/test_load_curve.py

bench: venv ## figures, as a table and JSON in benchmarks/results (quiet machine, minutes)
	$(BIN)/python -m benchmarks

test-localstack: venv .venv-localstack/.installed ## the object store's contract against LocalStack in host mode
	$(BIN)/python -m pytest -m localstack

.venv-localstack/.installed: requirements-localstack.txt
	$(PYTHON) -m venv --clear .venv-localstack
	$(call install,.venv-localstack/bin,requirements-localstack.txt)
	@touch $@

docs: venv ## docs/settings.md and docs/metrics.md from the code
	$(BIN)/python -m docs.reference

crds: venv ## the chart's custom resource definitions, from operator/tidelog_operator/resource.py
	$(BIN)/tidelog-operator crds --directory helm/tidelog/crds

chart: crds ## the chart's values.schema.json and README.md, from its values.yaml and the custom resource definitions
	$(BIN)/python -m helm.reference

proto: venv ## generated code from service/tidelog/proto/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -I service --python_out=service --pyi_out=service service/tidelog/proto/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -I service --grpc_python_out=service service/tidelog/proto/v1/log.proto service/tidelog/proto/v1/admin.proto service/tidelog/proto/v1/peers.proto

golden: ## example files of every format version, from docs/format.md alone
	$(PYTHON) tests/golden/make_golden.py

requirements: venv ## resolve the pinned requirements anew
	$(BIN)/$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --all-extras pyproject.toml requirements.in --output-file requirements.txt
	printf 'localstack-core[runtime]==4.13.1\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --exclude-newer 2026-02-20 - --output-file requirements-localstack.txt

prometheus: ## Prometheus for tests and localstack/up: Debian's package, unpacked and not installed
	@{ command -v prometheus && command -v promtool; } >/dev/null || $(MAKE) --no-print-directory --quiet .prometheus/usr/bin/prometheus \
	|| echo "Debian's Prometheus could not be fetched: tests that need it are skipped" >&2

.prometheus/usr/bin/prometheus:
	mkdir -p .prometheus
	cd .prometheus && { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; }
	cd .prometheus && dpkg -x prometheus_*.deb .

demo: venv ## the whole service at work, in acts, in under a minute; nothing is left behind
	$(BIN)/tidelog demo

dist: venv ## the wheel, the source distribution and the chart, in dist/
	$(BIN)/hatchling build --directory $(DIST)
	$(BIN)/python -c 'import helm_python, sys; print(helm_python.package("helm/tidelog", destination=sys.argv[1]))' $(DIST)

clean: ## what the targets made
	rm -rf .venv .venv-* .prometheus dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis benchmarks/results
