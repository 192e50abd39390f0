# `make convert` and `make test` are all that is needed on a fresh clone; `make help` lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Nothing that runs here phones home.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# torch's threads sleep while they wait, instead of taking a core from the processes beside them.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help convert evaluate test test-all test-gpu fuzz benchmark lint format docs catalogue picture artifacts clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

convert: $(VENV)/installed artifacts/outputs.csv ## Convert the demo checkpoint through the notebook, into converted/ and build/convert.html
	$(BIN)/python -m vitconv.cli.stages demo
	$(BIN)/jupyter nbconvert --log-level ERROR --to html --template offline_html \
		--TemplateExporter.extra_template_basedirs=tools build/convert.ipynb
	@echo "The model is in converted/vit-7class, the notebook with its pictures in build/convert.html."

evaluate: $(VENV)/installed artifacts/outputs.csv ## Convert, verify, predict, evaluate: dvc.yaml, into build/report/index.html
	PATH="$(abspath $(BIN)):$$PATH" dvc repro

test: $(VENV)/installed artifacts/outputs.csv ## Run the unit tests, the docstrings' examples and the notebooks (under 10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "not slow" tests/unit
	$(BIN)/pytest --doctest-modules vitconv
	$(BIN)/pytest -n auto --nbmake --nbmake-timeout=600 notebooks

test-all: test $(VENV)/transformers-4.57.6 ## Also full-size models, clusters, pipelines and another Transformers (under 40 minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m slow tests/unit
	$(BIN)/pytest -n auto --dist loadfile tests/system

test-gpu: $(VENV)/installed ## Run the tests that need a CUDA GPU
	$(BIN)/pytest -m gpu tests/system

fuzz: $(VENV)/installed ## Look for files, lists, names and parameters that are neither taken nor refused: over 200 000 cases
	mkdir -p build
	VITCONV_FUZZ_CASES=15000 $(BIN)/pytest --timeout 0 tests/unit/checkpoints/test_fuzz.py tests/unit/test_any_arguments.py tests/unit/test_to_huggingface.py tests/unit/checkpoints/test_description.py
	VITCONV_FUZZ_CASES=10000 OMP_NUM_THREADS=1 $(BIN)/pytest --timeout 0 -n auto tests/unit/evaluation/test_any_input.py
	$(BIN)/python fuzz/fuzz_checkpoint.py -runs=100000 -artifact_prefix=build/

benchmark: $(VENV)/installed ## Time conversions against cp, on a quiet machine (about 20 minutes)
	mkdir -p build
	$(BIN)/python benchmarks/convert.py --json build/benchmark.json

lint: $(VENV)/installed ## Check style, format, types, who imports whom, and that no notebook holds outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/installed ## Mend what `make lint` can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout notebooks/*.ipynb

# -E reads everything anew: what a page shows depends on code that Sphinx does not watch. While you write, leave the
# notebooks out: make docs SPHINXOPTS="-D nb_execution_mode=off"
docs: $(VENV)/installed artifacts/outputs.csv ## Build the guide, the executed notebooks and the API reference, into build/docs/index.html
	$(BIN)/sphinx-build -b html -c docs -d build/doctrees -E -W --keep-going -n $(SPHINXOPTS) . build/docs
	@! grep -rlE '<(script|link|img|iframe)[^>]+(src|href)="(https?:)?//' build/docs --include=*.html || (echo "These pages load from the network."; exit 1)
	@! grep -rlE '(url\(|@import )["'"'"']?(https?:)?//' build/docs --include=*.css || (echo "These styles load from the network."; exit 1)

catalogue: $(VENV)/installed ## Ask the installed timm again what its ViTs are; write docs/coverage.md
	$(BIN)/python tools/coverage_page.py

picture: $(VENV)/installed artifacts/outputs.csv ## Draw the README's picture again, docs/convert.png
	$(BIN)/python tools/readme_picture.py

artifacts: artifacts/outputs.csv ## Make the demo checkpoint and its images

clean: ## Remove what was made, but not the virtual environment
	rm -rf artifacts converted build dist .dvc/cache

# The generator gives the bytes that artifacts.dvc names: git shows it if it does not.
artifacts/outputs.csv: $(wildcard demo/*) | $(VENV)/installed
	$(BIN)/python demo/make_artifacts.py
	$(BIN)/dvc commit --quiet --force artifacts.dvc
	git diff --exit-code artifacts.dvc
	touch $@

$(VENV)/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

# The same folders must load under the last 4.x, too: it lies beside the environment, for one test to import.
$(VENV)/transformers-4.57.6: | $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --target $@ transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
