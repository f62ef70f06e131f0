# `make demo` and `make test` are all the set-up there is: each makes .venv on first use. `make` lists the targets.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-compile --no-deps --require-hashes
SNAKEMAKE := $(VENV)/bin/snakemake
CODE := workflow/scripts tests benchmarks tools

export PIP_PROGRESS_BAR := off

# CUDA release of torch's build where it is not one for the CPU: 13, or 12 for drivers before 580 (docs/aire.md).
TORCH_CUDA ?= $(or $(shell cat $(VENV)/.cuda 2>/dev/null),13)
TORCH_LOCKS := $(if $(filter 12,$(TORCH_CUDA)),requirements-cuda12.lock,requirements-torch.lock requirements-cuda.lock)

.PHONY: help install demo taste test chaos check bench bench-data bench-train bench-predict bench-plan bench-gpu \
	count-kernels aire-setup aire-fetch aire-check format lock schema screenshots docs clean

## help: list the targets
help:
	@sed -n 's/^## \([a-z-]*\): /\1\t/p' Makefile | while IFS=$$'\t' read -r target says; do printf '%-14s %s\n' "$$target" "$$says"; done

## install: .venv with the locked packages and the command `triptych`; other targets run this when needed
install: $(VENV)/.installed

## demo: the demonstration, on embedded weights and images; prints the results table
demo: $(VENV)/.installed
	$(VENV)/bin/triptych run --configfile config/demo.yaml

## taste: every step on a tiny scale, in minutes; its numbers mean nothing
taste: $(VENV)/.installed
	$(VENV)/bin/triptych run --configfile config/taste.yaml

# Tests on a cluster mostly wait: two processes run the others beside them.
TEST_PROCESSES ?= 3

## test: all tests, including toy studies
test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest --numprocesses $(TEST_PROCESSES) --durations 20

SEED ?= 0
MINUTES ?= 8

## chaos: a toy study with kills, a full disk and damaged files; SEED=0, disturbed for MINUTES=8
chaos: $(VENV)/.installed
	$(VENV)/bin/python tests/chaos.py --seed $(SEED) --minutes $(MINUTES)

## check: style, lint, dry runs of every configuration, and files that `make schema` writes
check: $(VENV)/.installed
	$(VENV)/bin/ruff check $(CODE)
	$(VENV)/bin/ruff format --check $(CODE)
	$(VENV)/bin/snakefmt --check Snakefile workflow/rules
	$(SNAKEMAKE) --lint
	$(VENV)/bin/python tools/check_profiles.py profiles/*/
	tools/dry-runs.sh $(SNAKEMAKE)
	$(VENV)/bin/python -m pytest tests/test_generated.py

## bench: all benchmarks; use a quiet machine
bench: bench-data bench-train bench-predict bench-plan

## bench-data: speed and memory of preparation and of feature encoding, against decoding only and other libraries
bench-data: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/bench_data.py
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/bench_features.py

## bench-train: speed and memory of training, against transformers' Trainer; about 15 minutes
bench-train: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/bench_train.py

## bench-predict: speed of answering, against transformers' generate, one question at a time
bench-predict: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/bench_predict.py

## bench-plan: time and memory of dry runs of 100, 1,000 and 10,000 jobs
bench-plan: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/bench_plan.py

## bench-gpu: a GPU in less than ten minutes: training, against transformers' Trainer, answering, a profile
bench-gpu: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/bench_gpu.py

## count-kernels: what a step gives a GPU to do, counted on the CPU; COUNT=--eager: without compilation as well
count-kernels: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/count_kernels.py $(COUNT)

## aire-setup: once, on a login node of Aire: .venv with the build of torch for the driver of the GPU nodes
aire-setup:
	tools/aire-setup.sh $(if $(filter command line environment,$(origin TORCH_CUDA)),$(TORCH_CUDA))

# Twice, the second time from the cache alone: what a job would still have to fetch shows here, and not on a GPU.
FETCH = $(SNAKEMAKE) --profile profiles/local --cores 1 --directory $(FOLDER) --configfile $(CONFIG) \
	--until fetch_dataset prepare_model
CONFIG ?= config/config.yaml
FOLDER ?= $(if $(SCRATCH),$(SCRATCH)/triptych,.)

## aire-fetch: once, on a login node: models and data of CONFIG into FOLDER ($SCRATCH/triptych), then again offline
aire-fetch: $(VENV)/.installed
	mkdir -p $(FOLDER)
	cd $(FOLDER) && $(abspath $(VENV))/bin/triptych fetch --check --configfile $(abspath $(CONFIG))
	$(FETCH)
	HF_HUB_OFFLINE=1 $(FETCH) --forcerun fetch_dataset prepare_model

## aire-check: before a study, on a login node: everything that would stop it, also in a short job on each partition
aire-check: $(VENV)/.installed
	$(VENV)/bin/triptych doctor --profile profiles/aire --directory $(FOLDER) --configfile $(CONFIG)

## format: apply the project's code style
format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix $(CODE)
	$(VENV)/bin/ruff format $(CODE)
	$(VENV)/bin/snakefmt Snakefile workflow/rules

## schema: config/schema.json (for editors) and the pages of docs/ that come from the code
schema: $(VENV)/.installed
	$(VENV)/bin/triptych schema --out config/schema.json
	$(VENV)/bin/python tools/settings_reference.py docs/configuration.md
	$(VENV)/bin/python tools/models_page.py docs/models.md
	$(VENV)/bin/python tools/commands_page.py docs/commands.md

## screenshots: the pictures of docs/images, after `make demo`; needs Chromium
screenshots: $(VENV)/.installed
	$(VENV)/bin/python tools/screenshots.py

DOCS := docs/_build

## docs: the site of docs/, in docs/_build/html; a link that leads nowhere is an error
docs: $(DOCS)/venv/.installed
	$(DOCS)/venv/bin/sphinx-build --fail-on-warning --keep-going --quiet --doctree-dir $(DOCS)/doctrees docs $(DOCS)/html

$(DOCS)/venv/.installed: requirements-docs.lock
	$(PYTHON) -m venv $(DOCS)/venv
	$(DOCS)/venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r $<
	touch $@

## lock: the pinned and hashed lock files from pyproject.toml (needs uv)
lock:
	$(PYTHON) tools/lock.py

## clean: remove .venv and the caches of the tools; results are kept
clean:
	rm -rf $(VENV) $(DOCS) .pytest_cache .ruff_cache

# Built by the setuptools of the lock file and not in a fresh environment, so that nothing is fetched. Editable: the
# package is this checkout.
$(VENV)/.installed: $(VENV)/.dependencies pyproject.toml
	$(PIP) install --quiet --no-deps --no-build-isolation --no-index --editable .
	touch $@

# torch comes in a CPU and a CUDA build: pip picks the one that suits (a CPU build where one is offered), its hash
# is checked, and the CUDA libraries follow only where the build needs them. For CUDA 12, an earlier release of torch.
# pip would compile one module after the other; compileall uses all cores, and leaves out the packages' own tests.
# A module that it cannot compile is named, and set-up goes on.
$(VENV)/.dependencies: requirements.lock $(TORCH_LOCKS)
	$(PYTHON) -c "import sys; sys.exit('Triptych needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.11 ...' if not (3, 11) <= sys.version_info[:2] < (3, 13) else 0)"
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH_CUDA),12)
	$(INSTALL) -r requirements-cuda12.lock
	grep -v '^-r' requirements.lock > $(VENV)/others.lock
	$(INSTALL) -r $(VENV)/others.lock
else
	$(PIP) download --quiet --no-deps --dest $(VENV)/torch $$(grep -o '^torch==[^ ]*' requirements-torch.lock)
	$(INSTALL) --no-index --find-links $(VENV)/torch -r requirements-torch.lock
	$(INSTALL) -r requirements.lock
	$(VENV)/bin/python -c "import torch" 2>/dev/null || $(INSTALL) -r requirements-cuda.lock
	rm -rf $(VENV)/torch
endif
	-$(VENV)/bin/python -m compileall -q -j 0 -x '/site-packages/.*/(tests|testing/_internal)/' $(VENV)/lib
	echo $(TORCH_CUDA) > $(VENV)/.cuda
	touch $@
