# Two commands on a fresh machine: `make sweep` and `make test`. Both use .venv, installed from requirements.lock.

.DEFAULT_GOAL := help
.PHONY: help install sweep test test-oldest test-newest lint bench bench-quick bench-quality bench-memory bench-store peers bench-serving docs format lock image image-run clean
.DELETE_ON_ERROR:

# The first interpreter that fits; another one: make sweep PYTHON=/path/to/python3.12
CANDIDATES := python3 python3.13 python3.12 python3.11 python
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXPERIMENT ?= experiments/quickstart.toml

# uv, which the lock brings, fills an environment in seconds where pip takes minutes; pip does it where uv finds no index.
# Compiled once here: where Python may not write bytecode (PYTHONDONTWRITEBYTECODE, a read-only environment), each process
# would compile TensorFlow anew and take 9 s to start instead of 4.
FILL = $(BIN)/uv pip install --compile-bytecode --only-binary :all: --python $(1)/bin/python $(2) \
  || $(1)/bin/python -m pip install --quiet --only-binary :all: $(2)
, := ,

help:  ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: .venv/.installed  ## Create .venv with the locked packages and this one

sweep: install  ## Run a sweep, end to end: make sweep EXPERIMENT=experiments/credit.toml
	$(BIN)/forge-sweep run $(EXPERIMENT)

# Passive: the trees' threads of one test process do not spin while the other has the core. The order is that of
# tests/conftest.py: the longest files first. Three processes on two cores: a good part of the tests wait.
test: install  ## Run the tests: make test TESTS='tests/test_study.py -k resume'
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)

# The same package with the oldest and with the newest release of everything in the ranges of pyproject.toml.
# No PyTorch and no Ray there, so that without CI=true their tests are skipped.
# A kill is the same with any release, and `make test` has it.
RANGE_TESTS ?= tests/test_end_to_end.py tests/test_tracking.py tests/test_study.py \
  --deselect tests/test_end_to_end.py::test_kill_9_in_the_middle_of_a_real_sweep_loses_nothing
IN_RANGE = env -u CI OMP_WAIT_POLICY=passive .venv-$(1)/bin/python -m pytest -n 3 --dist loadfile -p no:cacheprovider $(RANGE_TESTS)

test-oldest: .venv-oldest/.installed  ## Run the end-to-end, tracking and study tests with the oldest releases in range
	$(call IN_RANGE,oldest)

.venv-oldest/.installed: .venv/.installed requirements-oldest.lock
	$(PYTHON) -m venv --clear .venv-oldest
	$(call FILL,.venv-oldest,--require-hashes -r requirements-oldest.lock)
	.venv-oldest/bin/python -m pip install --quiet --no-build-isolation --no-deps --no-index --editable .
	@touch $@

# Resolved anew each time it is built, which is its purpose: a release of today that breaks us shows here first.
test-newest: .venv-newest/.installed  ## Run the same tests with the newest releases in range
	$(call IN_RANGE,newest)

.venv-newest/.installed: .venv/.installed
	$(PYTHON) -m venv --clear .venv-newest
	$(call FILL,.venv-newest,hatchling editables)
	$(call FILL,.venv-newest,--no-build-isolation --editable '.[dev$(,)postgres$(,)serve$(,)export]')
	@touch $@

lint: install  ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.bench  ## Ours against the hand-written loop, KerasTuner, Ray Tune and the limit (12 minutes)
	$(BIN)/python -m benchmarks all $(BENCH_FLAGS)

bench-quick: .venv/.bench  ## The same on a small scale; its figures mean little (4 minutes)
	$(BIN)/python -m benchmarks quick $(BENCH_FLAGS)

# AutoGluon has other versions of our own packages in its ranges, so that it lives in an environment of its own.
AUTOGLUON := "autogluon.tabular[lightgbm$(,)xgboost$(,)catboost]==1.6.3"
bench-quality: .venv/.bench  ## The default experiment against tuned trees and others on 18 real tables (4 hours; QUALITY_FLAGS='--seconds 30')
	@$(MAKE) --no-print-directory .venv-autogluon/.installed || echo "AutoGluon does not install here; its side is skipped" >&2
	$(BIN)/python -m benchmarks.quality run $(QUALITY_FLAGS)

.venv-autogluon/.installed: .venv/.installed
	$(PYTHON) -m venv --clear .venv-autogluon
	$(call FILL,.venv-autogluon,$(AUTOGLUON))
	@touch $@

bench-memory: .venv/.bench  ## Resident memory over 200 trials (13 minutes)
	$(BIN)/python -m benchmarks memory $(BENCH_FLAGS)

bench-store: install  ## Rows per second into and out of the feature store, against PostgreSQL's COPY (6 minutes, 12 GB)
	$(BIN)/python benchmarks/feature_store.py $(SIZES)

bench-serving: install  ## Requests per second of serve against mlflow models serve, on the same version (3 minutes)
	$(BIN)/python benchmarks/serving.py

docs: install  ## Write docs/experiment.md, docs/cli.md and docs/api.md again from the code
	$(BIN)/python docs/generate.py

format: install  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A changed lock means a new environment: nothing of the old one stays behind.
.venv/.locked: requirements.lock
	@$(if $(PYTHON),,echo "forge-sweep needs Python 3.11, 3.12 or 3.13 (TensorFlow has wheels for these); found none of them." >&2; \
	  echo "  fix: install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1)
	@$(PYTHON) -c '$(FITS)' || { echo "PYTHON=$(PYTHON) is `$(PYTHON) -V 2>&1`; expected Python 3.11, 3.12 or 3.13" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock >.venv/uv.lock  # its own lines
	$(PIP) install --quiet --require-hashes --only-binary :all: -r .venv/uv.lock
	$(call FILL,.venv,--require-hashes -r requirements.lock)
	@touch $@

.venv/.installed: .venv/.locked pyproject.toml
	$(PIP) install --no-build-isolation --no-deps --no-index --editable .
	@touch $@

# The peers of the benchmarks, and Ray for its tests, beside the locked packages and at the same versions of these.
peers: .venv/.bench  ## Add the packages of requirements-bench.lock to .venv
.venv/.bench: .venv/.installed requirements-bench.lock
	$(call FILL,.venv,--require-hashes -r requirements-bench.lock)
	@touch $@

# The others follow the first, so that the image and the benchmarks run what the tests ran.
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml --group build --universal \
  --fork-strategy fewest --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --quiet
lock: install  ## Resolve the dependencies again (add LOCK_FLAGS=--upgrade for newer ones)
	$(COMPILE) $(LOCK_FLAGS) --extra dev --extra postgres --extra serve --extra export -o requirements.lock
	$(COMPILE) --resolution lowest-direct --only-binary :all: --extra dev --extra postgres --extra serve --extra export -o requirements-oldest.lock
	$(COMPILE) $(LOCK_FLAGS) --extra gpu --extra postgres --extra serve --extra export -c requirements.lock -o requirements-gpu.lock
	$(COMPILE) $(LOCK_FLAGS) --extra bench --extra ray -c requirements.lock -o requirements-bench.lock

# The image. Its digest is known only after the build, so it is handed to each run; runs record it.
ENGINE ?= $(firstword $(foreach engine,docker podman buildah,$(if $(shell command -v $(engine) 2>/dev/null),$(engine))))
IMAGE ?= forge-sweep
image:  ## Build the container image and print its digest (ENGINE=docker, podman or buildah)
	@$(if $(ENGINE),,echo "make image needs docker, podman or buildah; found none of them" >&2; exit 1)
	$(ENGINE) build $(BUILD_FLAGS) --iidfile .image-digest --tag $(IMAGE) .
	@echo "$(IMAGE) `cat .image-digest`"

image-run:  ## Run a sweep in that image: make image-run EXPERIMENT=... RUN_FLAGS='--gpus all'
	@test -s .image-digest || { echo "no image yet: run make image first" >&2; exit 1; }
	@mkdir -p mlruns
	$(ENGINE) run --rm $(RUN_FLAGS) --user "`id -u`:`id -g`" --env HOME=/tmp --env USER="`id -un`" \
	  --env FORGE_SWEEP_IMAGE_DIGEST="`cat .image-digest`" \
	  --volume "$(CURDIR)/experiments:/work/experiments:ro" --volume "$(CURDIR)/mlruns:/work/mlruns" \
	  "`cat .image-digest`" run $(EXPERIMENT)

clean:  ## Remove the environment and caches; mlruns/ stays
	rm -rf .venv .venv-autogluon .venv-oldest .venv-newest .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .image-digest
	find forge_sweep tests -name __pycache__ -prune -exec rm -rf {} +
