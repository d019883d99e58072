# demo: installs, reconstructs a block, scores it, draws it.   test: installs, tests.
# bench: beside peers, in one run, as ratios; fails where a target is missed.
# lock: what the images install, by sha256.   audit: known holes in it, by PyPI's advisories.
# airflow: Airflow with the DAGs on 127.0.0.1:8080, workers as processes of this machine.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
EM_DATA ?= ../shared/data
# Many tests wait for processes and servers, so more at once than cores.
JOBS ?= 3
VENV := .venv
BIN := $(VENV)/bin
BLOCK := $(EM_DATA)/ac3_x0_512.h5
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard pipeline/kernels/cpp/*)
export EM_DATA

.PHONY: install browser extras demo test check bench airflow lock audit
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

# Airflow is an extra; the tests of the DAGs skip without it.
extras: $(VENV)/extras
$(VENV)/extras: $(VENV)/installed
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[test,airflow,postgresql]"
	touch $@

test: extras browser
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow"

check: extras browser
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q

bench: install
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[bench]"
	mkdir -p bench
	$(BIN)/python benchmarks/segmentation.py --cache bench --picture bench/segmentation.png --check

# LINKS is a folder with torch for CPUs, where its index cannot be reached.
lock: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docker/lock.py $(if $(LINKS),--find-links $(LINKS))

audit: install
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[audit]"
	$(BIN)/python docker/audit.py

# Its password stands in airflow/simple_auth_manager_passwords.json.generated; Ctrl-C ends.
AIRFLOW_FOLDER ?= $(CURDIR)/airflow
airflow: extras
	mkdir -p $(AIRFLOW_FOLDER)
	PATH="$(CURDIR)/$(BIN):$$PATH" AIRFLOW_HOME="$(AIRFLOW_FOLDER)" \
	AIRFLOW__API__HOST=127.0.0.1 AIRFLOW__CORE__LOAD_EXAMPLES=False \
	AIRFLOW__CORE__DAGS_FOLDER="$(CURDIR)/dags" OMP_NUM_THREADS=1 \
	EM_SCALER=processes EM_WORKERS="$(AIRFLOW_FOLDER)/workers" EM_WORKERS_MOST=2 \
	EM_ROOT="$${EM_ROOT:-$(CURDIR)/demo}" \
	EM_QUEUE="fq://$(AIRFLOW_FOLDER)/queues/{run}-{pool}" $(BIN)/airflow standalone
