# Nothing here needs an activated environment: the targets make their own in $(VENV) and reuse it.
#   make demo     set up what is needed and answer a question about the bundled picture, offline
#   make test     set up what is needed and run the tests
#   make check    ruff check, ruff format --check, tests (the same as pre-commit and .ci/run)
#   make bench    print the side-by-side measurements
PYTHON ?= python3
VENV ?= .venv
# Options for every `pip install`, for example an index with CPU-only torch wheels.
PIP_ARGS ?=
PYTEST_ARGS ?= -n auto
DEMO_MODEL ?= checkpoints/moai-nano
DEMO_PICTURE ?= examples/street.jpg
DEMO_QUESTION ?= What is written on the sign?
DEMO_OVERLAY ?= outputs/demo_overlay.png

BIN := $(VENV)/bin
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.PHONY: demo test check lint format bench clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "MoAI needs Python 3.10 or newer, '$(PYTHON)' is older. Name another: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "'$(PYTHON)' cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are older than setup.cfg exactly when the dependencies may have changed.
$(VENV)/.demo-installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[ocr,segmentation]"
	@touch $@

$(VENV)/.test-installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[test]"
	@touch $@ $(VENV)/.demo-installed

demo: $(VENV)/.demo-installed
	@mkdir -p $(dir $(DEMO_OVERLAY))
	$(OFFLINE) $(BIN)/moai ask "$(DEMO_PICTURE)" "$(DEMO_QUESTION)" --model "$(DEMO_MODEL)" --overlay "$(DEMO_OVERLAY)"

test: $(VENV)/.test-installed
	$(OFFLINE) $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint test

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test-installed
	$(OFFLINE) $(BIN)/python -m benchmarks.forward
	$(OFFLINE) $(BIN)/python -m benchmarks.verbalizers

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
