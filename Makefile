# `make help` lists what there is. Everything runs in .venv, which is made on first use and again when pyproject.toml changes.
PYTHON ?= python3
PORT   ?= 8000
BIN    := .venv/bin

.PHONY: help serve train test gpu gpu-proof test-container check format golden bench bench-training soak dist sbom licenses clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 24

serve: .venv/serve ## serve the shipped checkpoint on http://127.0.0.1:8000 (PORT=9000 changes it, ARGS="--checkpoint runs/mine/best" adds flags)
	@exec $(BIN)/python -m service --port $(PORT) $(ARGS)

train: .venv/train ## train the default preset on Tiny Shakespeare (DATA=my.txt trains on any UTF-8 text, ARGS="--preset smoke" adds flags)
	$(BIN)/python -m training $(if $(DATA),--data "$(DATA)") $(ARGS)

test: .venv/test ## install what the tests need and run them all
	$(BIN)/python -m pytest $(ARGS)

test-container: .venv/test ## build the images and run the shipped compose file on a Docker engine (minutes)
	$(BIN)/python -m pytest tests/container -m container $(ARGS)

gpu: ## what only a GPU can show, in eight minutes, with what is installed here (DRY=1: all of it without a GPU, no figures)
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(if $(DRY),--dry) $(ARGS)

gpu-proof: .venv/test ## prove the CUDA kernels without a GPU, whole: every shape through NVRTC, every architecture, every barrier (half an hour)
	FOLIO_GPU_PROOF=whole $(BIN)/python -m pytest tests/gpu $(ARGS)

check: .venv/check ## lint, format and types of the code, lint of the Dockerfile and of CI's workflow
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/actionlint

format: .venv/check ## put the code into the one format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

golden: .venv/test ## write the golden texts anew, by the reference: for a new checkpoint or a new version of the arithmetic
	$(BIN)/python -m tests.golden

bench: .venv/train ## measure the service over HTTP and the engine alone (LLAMA=llama-server puts it and CTranslate2 beside)
	$(BIN)/python -m benchmarks.serving $(ARGS)
	$(if $(LLAMA),$(BIN)/python -m pip install --quiet gguf ctranslate2 transformers)
	$(if $(LLAMA),$(BIN)/python -m benchmarks.peers --llama-server $(LLAMA))

bench-training: .venv/train ## measure a training step beside the original script's (DATA=FILE or FOLIO_DATA)
	$(BIN)/python -m benchmarks.train_step $(ARGS)

soak: .venv/test ## 20,000 requests with cancellations, crashes and promotions: no differing byte, no 500
	$(BIN)/python -m benchmarks.soak $(ARGS)

dist: .venv/release ## wheel and sdist in an empty dist/; one commit always gives the same bytes
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build

sbom: build/runtime/.made ## what an installation consists of, as CycloneDX JSON (make -s sbom > folio.cdx.json)
	@$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml build/runtime

licenses: build/runtime/.made ## the same as a table of licences
	@$(BIN)/pip-licenses --python build/runtime/bin/python --with-system --with-urls

clean: ## remove what the targets made (runs/ stays)
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Folio needs Python 3.11 or newer; set PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "no venv module: apt-get install python3-venv"; exit 1; }

.venv/serve: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/train: .venv/serve
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[train]"
	@touch $@

.venv/test: .venv/train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,release]"
	@scripts/install-chromium
	@scripts/install-firefox
	@scripts/install-prometheus
	@scripts/install-proxies
	@touch $@

.venv/check: .venv/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,release,check]"
	@touch $@

.venv/release: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[release]"
	@touch $@

# An environment of what an installation needs and nothing else, not even pip.
build/runtime/.made: .venv/release
	@rm -rf build/runtime
	@$(BIN)/python -m venv --without-pip build/runtime
	@$(BIN)/python -m pip --python build/runtime/bin/python install --quiet --disable-pip-version-check .
	@touch $@
