# Nothing here needs an activated environment: the targets make their own in $(VENV) and reuse it.
#   make demo     set up what is needed and answer a question about the bundled image, offline
#   make test     set up what is needed and run the tests
#   make check    ruff check, ruff format --check, tests (the same as pre-commit and .ci/run)
#   make test-newest, test-oldest   the fast tests with the newest and the oldest releases that setup.cfg allows
#   make test-lmms-eval   lmms-eval with the plug-in and as a client of the server, in an environment of its own, offline (7 GB)
#   make test-dist   build sdist and wheel, install the wheel in an empty environment and ask it a question
#   make lock     write constraints/: the exact releases that everything above installs
#   make soak     ten minutes of load and faults on a real server
#   make bench    print the side-by-side measurements
PYTHON ?= python3
VENV ?= .venv
# Options for every `pip install`, for example an index with CPU-only torch wheels.
PIP_ARGS ?=
PYTEST_ARGS ?= -n auto
# What pins the releases; empty: the newest that setup.cfg allows.
CONSTRAINTS ?= constraints/locked.txt
DEMO_MODEL ?= checkpoints/moai-nano
DEMO_IMAGE ?= examples/astronaut.jpg
DEMO_QUESTION ?= Is there a person?
DEMO_OVERLAY ?= outputs/demo_overlay.png

BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet $(PIP_ARGS) $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
FAST_TESTS = PYTEST_ARGS='-n auto -m "not slow"'
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.PHONY: demo test test-newest test-oldest test-lmms-eval test-dist check lint format lock soak bench clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "MoAI needs Python 3.11 or newer, '$(PYTHON)' is older. Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "'$(PYTHON)' cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are older than these files exactly when the dependencies may have changed.
$(VENV)/.demo-installed: setup.cfg pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP_INSTALL) -e ".[ocr,segmentation]"
	@touch $@

$(VENV)/.test-installed: setup.cfg pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP_INSTALL) -e ".[test]"
	@touch $@ $(VENV)/.demo-installed

demo: $(VENV)/.demo-installed
	@mkdir -p $(dir $(DEMO_OVERLAY))
	$(OFFLINE) $(BIN)/moai ask "$(DEMO_IMAGE)" "$(DEMO_QUESTION)" --model "$(DEMO_MODEL)" --overlay "$(DEMO_OVERLAY)"

# One thread per worker: there is a worker per core.
test: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m pytest $(PYTEST_ARGS)

test-newest:
	rm -f $(VENV)-newest/.test-installed
	$(MAKE) test VENV=$(VENV)-newest CONSTRAINTS= PIP_ARGS="$(PIP_ARGS) --upgrade --upgrade-strategy eager" $(FAST_TESTS)

test-oldest:
	$(MAKE) test VENV=$(VENV)-oldest CONSTRAINTS=constraints/oldest.txt $(FAST_TESTS)

# lmms-eval wants older releases than the rest of the house. It ends with 0 whatever happens: the test reads its results.
test-lmms-eval: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-lmms
	$(VENV)-lmms/bin/python -m pip install --quiet $(PIP_ARGS) --constraint constraints/lmms.txt -e ".[train,serve]" lmms-eval pytest
	OMP_NUM_THREADS=1 $(OFFLINE) $(VENV)-lmms/bin/python -m pytest tests/moai/evaluation/test_lmms.py

# Asked from another folder by names that ship with the wheel: nothing of the source tree can answer.
test-dist: $(VENV)/.test-installed
	rm -rf build dist $(VENV)-dist
	$(BIN)/python -m build > /dev/null
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install --quiet $(PIP_ARGS) $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) \
		"$$(echo dist/*.whl)[ocr,segmentation]"
	du -h dist/*
	cd $(VENV)-dist && $(OFFLINE) bin/moai ask astronaut.jpg "$(DEMO_QUESTION)"

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint test

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

LOCK = $(BIN)/uv pip compile setup.cfg --universal --python-version 3.11 --upgrade --quiet --no-annotate --constraint constraints/torch.in \
	--custom-compile-command "make lock"

# paddleocr holds numpy and others back: it has a file of its own.
lock: $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) "uv>=0.9"
	@mkdir -p constraints
	$(LOCK) --extra all --extra test --output-file constraints/locked.txt
	$(LOCK) --extra all --extra test --extra paddleocr --output-file constraints/paddleocr.txt
	$(LOCK) --extra all --extra test --resolution lowest-direct --output-file constraints/oldest.txt

# SOAK_ARGS='--minutes 0 --requests 60 --mutations 40' is the short form.
soak: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

bench: $(VENV)/.test-installed
	$(OFFLINE) $(BIN)/python -m benchmarks.cold_start
	$(OFFLINE) $(BIN)/python -m benchmarks.forward
	$(OFFLINE) $(BIN)/python -m benchmarks.verbalizers

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest $(VENV)-lmms $(VENV)-dist build dist *.egg-info .pytest_cache .ruff_cache
