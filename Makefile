# Two commands matter: `make demo` and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE

SGLANG := services/rollout/sglang/platform
JOBS ?= 2
FAST := not slow and not sglang

.PHONY: demo test test-slow test-sglang test-sglang-slow test-environments test-torchao check format docs bench clean .venv-sglang

.venv/.run: pyproject.toml tests/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c tests/constraints.txt -e .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/python -m pip install -q -c tests/constraints.txt -e ".[dev]"
	touch $@

.venv-sglang: .venv-sglang/.run  ## SGLang on a CPU, in an environment of its own: 2.7 GB
.venv-sglang/.run: $(wildcard $(SGLANG)/*.* $(SGLANG)/*/*.py)
	test -x .venv-sglang/bin/python || $(PYTHON) -m venv .venv-sglang
	.venv-sglang/bin/python -m pip install -q --no-deps -r $(SGLANG)/requirements.txt
	.venv-sglang/bin/python -m pip install -q --no-deps --force-reinstall ./$(SGLANG)
	touch $@

.venv-environments/.run: .venv/.dev  ## verifiers and OpenEnv, with what .venv has behind them
	test -x .venv-environments/bin/python || $(PYTHON) -m venv .venv-environments
	.venv-environments/bin/python -m pip install -q "verifiers>=0.4,<0.5" "openenv-core>=0.3,<0.4"
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	    $$(.venv-environments/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth
	touch $@

demo: .venv/.run  ## train a small model on this CPU; its reward climbs
	$(BIN)/midflight up configs/demo.yaml

test: .venv/.dev  ## the fast tests: JOBS files at a time, then those that need the machine for themselves
	status=0; \
	$(BIN)/python -m pytest -m "$(FAST) and not alone" -n $(JOBS) --dist loadfile --no-loadscope-reorder || status=$$?; \
	$(BIN)/python -m pytest -m "$(FAST) and alone" || status=$$?; \
	exit $$status

test-slow: .venv/.dev  ## chaos, soak and fuzz runs: about an hour
	$(BIN)/python -m pytest -m "slow and not sglang" --timeout 3600

test-sglang: .venv/.dev .venv-sglang/.run  ## the tests with real SGLang servers: minutes
	$(BIN)/python -m pytest -m "sglang and not slow"

test-sglang-slow: .venv/.dev .venv-sglang/.run  ## chaos and soak runs with real SGLang servers: an hour
	$(BIN)/python -m pytest -m "sglang and slow" --timeout 3600

test-environments: .venv-environments/.run  ## the tests with real environments of verifiers and OpenEnv: minutes
	PYTHONPATH=$(CURDIR)/.pkg .venv-environments/bin/python -m pytest tests/services/test_environments.py tests/e2e/test_environments.py

.venv-torchao/.run: .venv/.dev  ## beside .venv: transformers imports it wherever it is
	$(BIN)/python -m pip install -q --no-deps -c tests/constraints.txt --target .venv-torchao "torchao>=0.18,<0.19"
	touch $@

test-torchao: .venv-torchao/.run  ## the 8-bit optimizer: a minute
	PYTHONPATH=$(CURDIR)/.venv-torchao $(BIN)/python -m pytest tests/services/test_learner_eight_bit.py

check: .venv/.dev  ## format, lint, types, layers, dead code, docstrings, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd .pkg && ../$(BIN)/lint-imports --config ../pyproject.toml
	$(BIN)/vulture
	$(BIN)/interrogate -q
	$(BIN)/python docs/generate.py --check

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.dev  ## regenerate the reference pages
	$(BIN)/python docs/generate.py

bench: .venv/.dev  ## every benchmark, one table
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv .venv-sglang .venv-environments .venv-torchao .mypy_cache .ruff_cache .pytest_cache runs
