# The commands of the README and of docs/. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # not --quiet: a warning that is not shown is not counted
TRITON := nvidia-pytriton==0.7.0 numpy==1.26.4 pyarrow==21.0.0
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help setup run test check docs bench gpu-check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(VENV)/.dev-installed  ## install everything that development needs into .venv

# What a user needs, and nothing else.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

# What tests and checks need besides: Spark, Ray, transformers, an S3 server, a browser driver, linters. Triton's server
# goes into a folder of its own, with the older numpy that it was built for, and a pyarrow that takes that.
$(VENV)/.dev-installed: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	rm -rf $(VENV)/triton
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps \
		--target $(VENV)/triton $(TRITON) \
		|| echo "no Triton server for this machine: tests/serving/test_triton.py will not run"
	touch $@

run: $(VENV)/.installed  ## label the sample images with the embedded model and show the result
	rm -rf demo-scores  # an older version's run may have other settings
	$(BIN)/clipbatch demo --out demo-scores

test: setup  ## run all tests
	$(BIN)/python -m pytest -n logical --maxprocesses 4

check: setup  ## lint, format, types, import rules, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/options_page.py --check
	$(MKDOCS)

docs: setup  ## build docs/ into site/, with the page of options made anew
	$(BIN)/python scripts/options_page.py
	$(MKDOCS)

bench: setup  ## measure speed and memory on this machine (IMAGES=folder)
	$(BIN)/python benchmarks/speed.py run $(IMAGES)
	$(BIN)/python benchmarks/speed.py steps $(IMAGES)
	$(BIN)/python benchmarks/speed.py preprocess $(IMAGES)

gpu-check:  ## all there is to check and measure on a GPU, offline, in 8 minutes (IMAGES=folder MINUTES=8)
	PYTHONPATH=pipeline $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py $(IMAGES) \
		$(if $(MINUTES),--minutes $(MINUTES)) --report benchmarks/results/$$(date +%F)-gpu-check.md

clean:  ## remove what was installed and made here
	rm -rf $(VENV) demo-scores site
