PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard pipeline/kernels/cpp/*)

.PHONY: install demo test check bench
install: $(VENV)/installed

# torch goes first and alone: left to the resolver it brings gigabytes of CUDA.
$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/python -m pip install -q -U pip uv
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[test]"
	touch $@
