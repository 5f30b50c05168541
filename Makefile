# GNU make and Python 3.11 are all that is needed: `make demo` and `make test` install what is missing into .venv first.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint bench clean

VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.bench-installed

# The first of these that runs, is new enough, and can make a virtual environment.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

# PyTorch's public index of CPU builds: elsewhere the same torch may come with gigabytes of CUDA.
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell grep '^torch==' constraints.txt)

# Handed on to the program that a target runs: make demo ARGS="--events 50000", make test ARGS="-k kafka".
ARGS ?=

help:
	@echo 'make install   make .venv with the tested versions of everything (quick when nothing has changed)'
	@echo 'make demo      the whole path on this machine: stream, Kafka, learning, drift, pruning, Redis, scoring'
	@echo 'make test      the tests'
	@echo 'make lint      ruff, and mypy --strict over the package'
	@echo 'make bench     the quick benchmarks: one JSON object each'
	@echo 'make clean     remove .venv and what was built'
	@echo 'Variables: ARGS (for the program that is run), PYTHON, VENV, TORCH_INDEX_URL'

install: $(INSTALLED)

# torch first and without its dependencies, which are pinned too and come with the others. When its index can't be reached
# within seconds, torch comes from wherever pip finds it.
$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo 'make: needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv), or PYTHON=/path/to/it' >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --no-deps --timeout 10 --retries 1 --index-url $(TORCH_INDEX_URL) '$(TORCH)' \
	|| $(BIN)/python -m pip install --no-deps '$(TORCH)'
	$(BIN)/python -m pip install -c constraints.txt -e '.[local,registry,datasets,test]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e '.[bench]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m niwaki demo $(ARGS)

# One thread: the tests' networks are far too small for a second one to pay.
test: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(ARGS)

# mypy reads files, not the installed package: it is shown the rooms where they are imported from, inside niwaki/.
TYPED := build/typed/niwaki
lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	rm -rf $(TYPED) && mkdir -p $(TYPED)
	ln -s $(CURDIR)/niwaki/*.py $(addprefix $(CURDIR)/,pruning model serving stream) $(TYPED)/
	$(BIN)/python -m mypy

bench: $(BENCH_INSTALLED)
	$(BIN)/python -m benchmarks.pipeline --quick --json $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
