# make demo   the whole chain on a made-up data set, a few minutes on two cores, no GPU
# make test   lint, types, tests
# Both make .venv by themselves. PYTHON=python3.12 picks an interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test lint types lock clean

help:
	@echo "make demo   run the whole chain on the demo set (about five minutes on two cores)"
	@echo "make test   lint, types and tests"
	@echo "make install   make .venv with everything in it; then: $(BIN)/hoc --help"

install: $(INSTALLED)

# A torch that is there already (in $(PYTHON), or put into .venv by hand) is kept: then the locked
# torch, torchvision, triton and CUDA packages are left out of what is installed.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "hoc needs Python 3.10 or later; $(PYTHON) is `$(PYTHON) --version 2>&1`. Give another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@if [ ! -x $(BIN)/python ]; then \
	  if $(PYTHON) -c 'import torch, torchvision' 2>/dev/null; then \
	    echo "== making $(VENV), keeping the torch that $(PYTHON) already has"; \
	    $(PYTHON) -m venv --system-site-packages $(VENV); \
	  else \
	    echo "== making $(VENV)"; \
	    $(PYTHON) -m venv $(VENV); \
	  fi || { rm -rf $(VENV); echo "could not make $(VENV): install Python's venv module (Debian: python3-venv) and try again"; exit 2; }; \
	fi
	@echo "== installing uv, the package installer"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@if $(BIN)/python -c 'import torch, torchvision' 2>/dev/null; then \
	  echo "== installing the locked packages beside torch `$(BIN)/python -c 'import torch; print(torch.__version__)'`"; \
	  grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' requirements.lock > $(VENV)/requirements.txt; \
	else \
	  echo "== installing the locked packages (torch is large: minutes at the first time, seconds from a cache)"; \
	  cp requirements.lock $(VENV)/requirements.txt; \
	fi
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r $(VENV)/requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: $(INSTALLED)
	$(BIN)/hoc demo

# A process a core, with one thread: the tests' tensors are small, and a second thread would only
# wait for the first.
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# Names and versions only, for every platform; no index addresses.
lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 \
	  --extra dev --extra onnx --extra ray --extra tensorboard \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
	  pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV)
