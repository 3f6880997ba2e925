VENV ?= .venv
PYTHON ?= python3

BIN := $(VENV)/bin
PIP := PIP_REQUIRE_VIRTUALENV=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-chat test-engines test-soak bench check format reference clean


help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp ## learn a prompt on the embedded model and data, and compare it with a written one
	$(BIN)/softprompt demo

test: check ## run the checks and all tests, those with the real model too
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-chat: $(VENV)/test.stamp ## conversations with a real instruct model, fetched once (480 MB), and real clients in a venv of their own
	$(BIN)/python bench/real_models.py
	$(BIN)/python -m pytest -m chat
	$(BIN)/python tests_clients/run.py

test-engines: $(VENV)/test.stamp ## compare exports in real vLLM and llama.cpp with softprompt; installs both, takes long
	$(BIN)/python tests_engines/run.py

bench: $(VENV)/test.stamp ## run the benchmarks one after the other, results in bench/results; takes long, on an idle machine
	$(BIN)/python bench/run_all.py

test-soak: $(VENV)/test.stamp ## five minutes of 64 clients on a server whose store changes, every answer checked
	$(BIN)/python tests_soak/run.py --seconds 300

check: $(VENV)/test.stamp ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp ## sort imports, mend what ruff can mend, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(VENV)/test.stamp ## write the reference in docs/reference from the code
	$(BIN)/python docs/reference/generate.py

clean: ## remove the virtual environment, builds and caches; the converted model in the user's cache stays
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find softprompt tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "expected Python 3.11 or newer, got %s: give another with make PYTHON=..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/venv.stamp
	@echo "installing into $(VENV): a few minutes"
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/venv.stamp
	@echo "installing into $(VENV): a few minutes"
	$(PIP) -e '.[demo,data,tensorboard,peft,quantized,serve,dev]'
	touch $@ $(VENV)/demo.stamp
