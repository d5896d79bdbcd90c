# make quickstart, make test: each does all the set-up it needs on a machine with make and Python 3.11 or newer.

VENV := .venv
PYTHON := $(VENV)/bin/python

.PHONY: help setup quickstart identity grpo compare curate test test-all lint clean

help:
	@echo "make quickstart   fine-tune the embedded SmolLM2 and compare its answers (CPU, minutes)"
	@echo "make identity     teach it a new identity by DPO, and see what that gained and cost (CPU, minutes)"
	@echo "make grpo         teach it to add and multiply by online RL with a verifier (CPU, minutes)"
	@echo "make compare      PPO, GRPO, RLOO and REINFORCE++ at equal sampled tokens, three seeds each (CPU, hours)"
	@echo "make curate       teach it the same by the best of its own answers: sample, choose, train (CPU, minutes)"
	@echo "make test         the quick tests, on 8 simulated devices"
	@echo "make test-all     all tests, the slow ones too"
	@echo "make lint         the linter"

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dev.txt scripts/setup.sh
	@sh scripts/setup.sh $(VENV)

quickstart: $(VENV)/installed
	@$(PYTHON) -m scripts.quickstart

identity: $(VENV)/installed
	@$(PYTHON) -m scripts.identity

grpo: $(VENV)/installed
	@$(PYTHON) -m scripts.arithmetic

compare: $(VENV)/installed
	@$(PYTHON) -m scripts.compare

curate: $(VENV)/installed
	@$(PYTHON) -m scripts.expert_iteration

test: $(VENV)/installed
	$(PYTHON) -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/installed
	$(PYTHON) -m pytest -n 2 --dist worksteal

lint: $(VENV)/installed
	$(PYTHON) -m ruff check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
