# Everything runs in .venv, which the first target that needs it creates. `make` alone prints what there is.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n auto --maxprocesses=4
BIN := $(VENV)/bin
# One thread each: tests run side by side, and sums stay in one order.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install test test-slow check docs format demo models zoo bench-quality bench-ablation bench-latency bench-scale check-report bench-runtimes bench-loaders fuzz kill bad-input wheel clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  %-14s %s\n", $$1, $$2}'

install: $(VENV)/.dev ## Create .venv with everything that development needs

# Other runtimes where they can be installed; without them their tests are skipped, with a reason. The second run has
# optimum, which goes with transformers 4.57 alone. What takes minutes is left to `make test-slow`.
test: $(VENV)/.dev build/optimum/.done ## Run the tests (PYTEST_ARGS="-x -k name" to choose)
	-@$(MAKE) --no-print-directory build/runtimes/.done
	$(BIN)/pytest $(PYTEST_ARGS)
	PYTHONPATH=$(OPTIMUM) $(BIN)/pytest -n auto --maxprocesses=4 tests/fxslim/test_loaders.py

OPTIMUM := build/optimum:integrations/optimum-fxslim
WITH_OPTIMUM := tests/fxslim/test_loaders.py tests/fxslim/test_optimum_command.py

test-slow: $(VENV)/.dev build/optimum/.done build/olive/.done ## Run the tests that take minutes, optimum-cli and Olive
	$(BIN)/pytest -n auto --maxprocesses=4 -m slow
	PYTHONPATH=$(OPTIMUM) $(BIN)/pytest -n auto --maxprocesses=4 -m "slow or not slow" $(WITH_OPTIMUM)
	PYTHONPATH=build/olive $(BIN)/pytest -n 0 -m "slow or not slow" tests/fxslim/test_olive.py

check: $(VENV)/.dev layout ## Lint, formatting, types and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/layout && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p fxslim
	$(MKDOCS) build --strict --quiet

# A notice of the theme about another version of mkdocs is not ours, and warnings are errors here.
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: $(VENV)/.dev layout ## Build the documentation: build/site/index.html
	$(MKDOCS) build --strict

format: $(VENV)/.dev ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(VENV)/.run ## Slim the bundled language model to 70 % and leave the result in out/demo
	rm -rf out/demo
	$(BIN)/fxslim slim bundled:opt-python --keep 0.7 -o out/demo

models: $(VENV)/.dev ## Train the bundled models again (about half an hour)
	$(BIN)/python examples/train_digits_resnet.py --out fxslim/models/digits-resnet
	$(BIN)/python examples/train_python_lm.py --out fxslim/models/opt-python

# torchvision has no build for every torch, and transformers would find it: it stays out of .venv.
build/vision/.done: | $(VENV)/.dev
	$(BIN)/pip install --quiet --no-deps --target build/vision torchvision timm pillow
	@touch $@

# transformers 4.57 with what it needs in versions of its own (tokenizers, requests), beside the 5 of .venv; with optimum
# for its loaders, which do not go with 5.
TRANSFORMERS4 := "transformers<5" "huggingface-hub<1" "tokenizers<0.23" requests urllib3 idna certifi charset-normalizer

build/transformers4/.done: | $(VENV)/.dev
	$(BIN)/pip install --quiet --no-deps --target build/transformers4 $(TRANSFORMERS4)
	@touch $@

build/optimum/.done: | $(VENV)/.dev
	$(BIN)/pip install --quiet --no-deps --target build/optimum "optimum<2.2" "optimum-onnx<0.2" $(TRANSFORMERS4)
	@touch $@

# Olive with what it needs and .venv has not; its own requirements would bring other versions of what is here.
OLIVE := olive-ai optuna alembic sqlalchemy greenlet mako colorlog pandas pytz questionary prompt-toolkit wcwidth \
	torchmetrics lightning-utilities opentelemetry-sdk opentelemetry-api opentelemetry-semantic-conventions \
	importlib-metadata zipp six requests urllib3 certifi charset-normalizer

build/olive/.done: | $(VENV)/.dev
	$(BIN)/pip install --quiet --no-deps --target build/olive $(OLIVE)
	@touch $@

zoo: $(VENV)/.dev build/vision/.done build/transformers4/.done ## Sweep over torchvision, timm, transformers (hours)
	status=0; \
	PYTHONPATH=build/vision $(BIN)/python -W ignore -m benchmarks.zoo --library torchvision timm $(ZOO_ARGS) || status=1; \
	PYTHONPATH=build/transformers4 $(BIN)/python -W ignore -m benchmarks.zoo --library transformers $(ZOO_ARGS) || status=1; \
	$(BIN)/python -W ignore -m benchmarks.zoo --library transformers $(ZOO_ARGS) || status=1; \
	exit $$status

bench-quality: $(VENV)/.dev ## Every method at equal budgets on MODEL, a directory with calib.txt and valid.txt
	$(BIN)/python -W ignore -m benchmarks.quality $(or $(MODEL),$(error give MODEL=DIRECTORY)) $(QUALITY_ARGS)

bench-loaders: $(VENV)/.dev build/optimum/.done ## What optimum's loaders, ours and ONNX Runtime make of results
	PYTHONPATH=build/optimum $(BIN)/python -W ignore -m benchmarks.loaders $(LOADERS_ARGS)
	$(BIN)/python -W ignore -m benchmarks.loaders --plain $(LOADERS_ARGS)

bench-ablation: $(VENV)/.dev ## What single choices are worth on MODEL (as bench-quality)
	$(BIN)/python -W ignore -m benchmarks.ablation $(or $(MODEL),$(error give MODEL=DIRECTORY)) $(QUALITY_ARGS)

# Beside .venv, not in it: OpenVINO is large and bounds the version of numpy, and none of them is needed otherwise.
build/runtimes/.done: | $(VENV)/.dev
	$(BIN)/pip install --quiet --no-deps --target build/runtimes openvino openvino-telemetry onnxslim onnxsim
	@touch $@

build/web/.done: $(wildcard benchmarks/web/*)
	mkdir -p build/web && cp benchmarks/web/* build/web/
	cd build/web && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

bench-runtimes: $(VENV)/.dev build/runtimes/.done build/web/.done ## Slim files in OpenVINO, Node, Chromium, after optimizers
	PYTHONPATH=build/runtimes $(BIN)/python -W ignore -m benchmarks.runtimes --node build/web --out benchmarks/results/runtimes.md

# Both bundled models, once: about three minutes.
build/reports/.done: | $(VENV)/.dev
	rm -rf build/reports && mkdir -p build/reports
	$(BIN)/fxslim slim bundled:opt-python --keep 0.7 -o build/reports/opt-python
	$(BIN)/fxslim slim bundled:digits-resnet --keep 0.6 --of macs --round-to 8 -o build/reports/digits-resnet
	@touch $@

check-report: $(VENV)/.dev build/web/.done build/reports/.done ## Pages of reports in Chromium: phone, desktop, paper, axe-core
	$(BIN)/python -W ignore -m benchmarks.report_page --node build/web --shots build/shots --out benchmarks/results/report_page.md \
		build/reports/opt-python build/reports/digits-resnet

bench-latency: $(VENV)/.dev ## Known shapes at a share of their MACs, timed beside the original (LATENCY_ARGS)
	$(BIN)/python -W ignore -m benchmarks.latency $(LATENCY_ARGS)

bench-scale: $(VENV)/.dev ## What models larger than memory take, and how fast (SCALE_ARGS for the export)
	$(BIN)/python -W ignore -m benchmarks.scale capture
	$(BIN)/python -W ignore -m benchmarks.scale export $(SCALE_ARGS)
	$(BIN)/python -W ignore -m benchmarks.scale speed
	$(BIN)/python -W ignore -m benchmarks.scale memory
	$(BIN)/python -W ignore -m benchmarks.scale_processes fxslim/models/opt-python
	$(BIN)/python -W ignore -m benchmarks.scale_estimate fxslim/models/opt-python

fuzz: $(VENV)/.dev ## Build random modules, cut, prove and run them until something breaks (about an hour)
	status=0; \
	$(BIN)/python -W ignore -m tests.fuzz --fresh --count 5000 --out benchmarks/results/fuzz.md $(FUZZ_ARGS) || status=1; \
	$(BIN)/python -W ignore -m tests.fuzz --mutate --fresh --count 600 --minutes 20 --out benchmarks/results/fuzz.md $(FUZZ_ARGS) || status=1; \
	exit $$status

kill: $(VENV)/.dev ## Kill runs at every write and every step, and look at what is left (about half an hour)
	$(BIN)/python -W ignore -m tests.kill $(KILL_ARGS)

bad-input: $(VENV)/.dev ## What is said to every kind of bad input, as a table
	$(BIN)/python -W ignore -m tests.bad_input

wheel: $(VENV)/.run ## Build the wheel into dist/
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

clean: ## Remove what was built; .venv stays
	rm -rf build dist out *.egg-info .mypy_cache .pytest_cache .ruff_cache

# The folders as the package has them (graph/ is fxslim.graph), for a type checker that does not import.
.PHONY: layout
layout:
	@rm -rf build/layout && mkdir -p build/layout/fxslim
	@ln -s $(CURDIR)/fxslim/* $(CURDIR)/graph $(CURDIR)/passes $(CURDIR)/export build/layout/fxslim/

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Stamps: installed again when pyproject.toml changes. Editable, so that the code that runs is the code that is here.
$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable ".[cpu,hf]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $(VENV)/.run $@
