# make demo    the whole way on generated data: train, prune, repair, distill, export, report
# make test    every test
# make lint    ruff and mypy
# make results docs/results.md and the table of README.md, from the JSON files in docs/results/
# make notebook  docs/tutorial.ipynb, run from top to bottom; its outputs are stored in it
# Each makes .venv first, and again only when the dependencies changed. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin
DEPENDENCIES := setup.cfg pyproject.toml

.PHONY: demo test lint results notebook clean

demo: .venv/installed
	$(BIN)/distill run demo

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

results: .venv/installed
	$(BIN)/distill report --results docs/results --table README.md

notebook: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.notebook docs/tutorial.ipynb

# ultralytics asks for opencv-python, which needs the libraries of a desktop (libGL, libxcb). Where they are missing, on
# a server or in a container, the same release without windows goes over it: pip still finds both and changes neither.
.venv/installed: $(DEPENDENCIES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	$(BIN)/python -c 'import cv2' 2>/dev/null || $(BIN)/python -m pip install --disable-pip-version-check --no-deps \
		opencv-python-headless==$$($(BIN)/python -m pip show opencv-python | sed -n 's/^Version: //p')
	touch $@

.venv/installed-lint: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[lint]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
