# make retrain   install, then records to a gated adapter     make ui      look at it in MLflow
# make test      lint, types, floors, tests (10 minutes)      make test-slow   what takes longer

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Uncompiled imports take several times as long.
unexport PYTHONDONTWRITEBYTECODE
# More threads than free cores make small models slower.
export OMP_NUM_THREADS ?= 1

.PHONY: install retrain ui deploy test test-slow clean

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) was found: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Installing the pinned packages into .venv; this takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile -r requirements.lock
	@# pip compiles on one core. A file that a package carries for another Python does not compile, and need not.
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	touch $@

retrain: install
	$(BIN)/ecg retrain

ui: install
	$(BIN)/ecg ui

deploy: install   # a team's Prefect server: docs/operations.md
	$(BIN)/ecg deploy

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@# mypy keeps one core busy: it runs beside the tests, and the target fails where either does.
	$(BIN)/mypy & types=$$!; \
	  $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile; tests=$$?; \
	  wait $$types && exit $$tests

test-slow: install
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --durations=25

clean:   # what a run makes; the registry (mlruns/), DVC's cache and .venv stay
	rm -rf data/records data/items data/exams models/adapter models/page_cnn reports/card reports/curves reports/drift
	rm -rf reports/metrics.json reports/predictions.parquet reports/training.csv dvc.lock .checkpoints logs dvc_plots
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info
