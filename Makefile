# make quickstart, make test: each does all the set-up it needs on a machine with make and Python 3.11 or newer.

VENV := .venv
PYTHON := $(VENV)/bin/python

.PHONY: help setup quickstart identity grpo compare curate test test-all lint constraints clean

help:
	@echo "make quickstart   fine-tune the embedded SmolLM2 and compare its answers (CPU, minutes)"
	@echo "make identity     teach it a new identity by DPO, and see what that gained and cost (CPU, minutes)"
	@echo "make grpo         teach it to add and multiply by online RL with a verifier (CPU, minutes)"
	@echo "make compare      PPO, GRPO, RLOO and REINFORCE++ at equal sampled tokens, three seeds each (CPU, hours)"
	@echo "make curate       teach it the same by the best of its own answers: sample, choose, train (CPU, minutes)"
	@echo "make test         the quick tests, on 8 simulated devices"
	@echo "make test-all     all tests, the slow ones too"
	@echo "make lint         the linter"
	@echo "make setup        .venv alone, which all of these make if it is not there or not of these requirements"
	@echo "make constraints  constraints.txt anew: the newest versions, if they pass the quick tests"
	@echo "make clean        without .venv and caches"

setup:
	@sh scripts/setup.sh $(VENV)

quickstart: setup
	@$(PYTHON) -m scripts.quickstart

identity: setup
	@$(PYTHON) -m scripts.identity

grpo: setup
	@$(PYTHON) -m scripts.arithmetic

compare: setup
	@$(PYTHON) -m scripts.compare

curate: setup
	@$(PYTHON) -m scripts.expert_iteration

test: setup
	$(PYTHON) -m pytest -n 2 --dist worksteal -m "not slow"

test-all: setup
	$(PYTHON) -m pytest -n 2 --dist worksteal

lint: setup
	$(PYTHON) -m ruff check .

constraints:
	@rm -rf $(VENV)-newest
	@CONSTRAINTS=/dev/null sh scripts/setup.sh $(VENV)-newest
	$(VENV)-newest/bin/python -m pytest -n 2 --dist worksteal -m "not slow"
	@sh scripts/constraints.sh $(VENV)-newest

clean:
	rm -rf $(VENV) $(VENV)-newest .pytest_cache .ruff_cache
