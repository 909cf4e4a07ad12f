# Everything here works from a fresh clone: the virtual environment is made when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Processes share the cores: a thread that waits must not keep others from running.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo submit test test-unit test-faults test-gpu verify-published lint format type fields clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv with the tested versions of everything

# torch first and by its exact pin, so that no other package pulls a larger build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# Processors without AMX train faster in float32: 1.5 times with AVX-512, several times without.
DTYPE = $(shell grep -qs amx_bf16 /proc/cpuinfo && echo bfloat16 || echo float32)
demo: setup  ## Six pruned, retrained versions of a real model against the original: a report in a quarter of an hour
	@$(BIN)/python -m jobs.assets demo > /dev/null
	@$(BIN)/python -m jobs.search jobs/configs/demo.yaml --model.dtype $(DTYPE)

ADDRESS ?= http://127.0.0.1:8265
submit: setup  ## Run the search of CONFIG=... on the Ray cluster whose dashboard is ADDRESS=...
	@$(BIN)/python -m jobs.submit $(CONFIG) --address $(ADDRESS) $(FLAGS)

PROCESSES ?= 2
test: test-unit  ## All tests, with Ray and a real S3 server
	$(BIN)/pytest -m ray tests/ray

test-unit: setup  ## Tests that need no Ray cluster, in PROCESSES=2 at a time
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(PROCESSES) --dist loadfile -m 'not ray and not faults'

test-faults: setup  ## Tests that take nodes from a running cluster: minutes each, not part of `make test`
	$(BIN)/pytest -m faults tests/faults

FIGURES ?= gpu.json
# In this order, the most telling first; -k runs a part alone.
GPU_TESTS := $(addprefix tests/gpu/test_,parity.py passes.py training.py scoring.py generation.py several_gpus.py)
test-gpu: setup  ## Tests on a GPU, 8 minutes; figures go to FIGURES=gpu.json; skipped without CUDA
	$(BIN)/pytest $(GPU_TESTS) -s -rs -p no:logging --figures $(FIGURES) $(FLAGS)

verify-published: setup  ## Compare models of the hub with the paper's figures: network, GPU; FLAGS="--model llama-7b"
	@$(BIN)/python -m tests.benchmarks.published $(FLAGS)

lint: setup  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## Apply style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup  ## Check types
	$(BIN)/mypy

fields: setup  ## Write shortened_llm/FIELDS.md, every field of the configuration, from the schema
	$(BIN)/python -m jobs.fields > shortened_llm/FIELDS.md

clean:  ## Remove .venv and caches; results and staged assets stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache *.egg-info
