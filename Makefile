# demo: installs, reconstructs a block, scores it, draws it.   test: installs, tests.
# bench: beside peers, in one run, as ratios; fails where a target is missed.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
EM_DATA ?= ../shared/data
VENV := .venv
BIN := $(VENV)/bin
BLOCK := $(EM_DATA)/ac3_x0_512.h5
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard pipeline/kernels/cpp/*)
export EM_DATA

.PHONY: install browser demo test check bench
install: $(VENV)/installed

# torch goes first and alone: left to the resolver it brings gigabytes of CUDA.
$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -U pip uv
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[test]"
	touch $@

# Neuroglancer is tested in a browser; without one that test skips and says so.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	  || echo "no chromium: the Neuroglancer test will skip"

demo: install
	@if [ -f "$(BLOCK)" ]; then \
	  $(BIN)/em reconstruct "$(BLOCK):raw" --truth "$(BLOCK):labels" --voxel-size 6,6,30 \
	    --bbox 0,0,0,512,512,100 --root demo --name demo; \
	else \
	  echo "no $(BLOCK) (set EM_DATA): taking synthetic neuropil, which the net never saw"; \
	  $(BIN)/em reconstruct phantom://384,384,64/image --truth phantom://384,384,64/labels \
	    --root demo --name demo; \
	fi

test: install browser
	$(BIN)/python -m pytest -q -m "not slow"

check: install browser
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q

bench: install
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[bench]"
	mkdir -p bench
	$(BIN)/python benchmarks/segmentation.py --cache bench --picture bench/segmentation.png --check
