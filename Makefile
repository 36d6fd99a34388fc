# Needs Python 3.11+ with venv, git and make. Everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2  # tests that run at once, each on one thread
TORTURE ?=  # options of benchmarks/torture.py, such as --seed 7 --minutes 60
BENCH ?=  # options of benchmarks/speed.py, such as --rows hop-large --json FILE
export OMP_NUM_THREADS ?= 2

.PHONY: setup quickstart repro test test-fast coverage docs site notebook check check-gpu bench torture \
	lock-requirements clean

setup: .venv/ready               ## install the pinned packages and stagedkd into .venv

# Without DVC: dvc.lock is under version control, and other CPUs give other last bits, so other hashes.
quickstart: .venv/ready          ## set up and run specs/quickstart.yaml
	$(BIN)/stagedkd run specs/quickstart.yaml --no-dvc

repro: .venv/ready               ## set up and rebuild what dvc.yaml describes
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

test: .venv/ready                ## set up and run all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-fast: .venv/ready           ## set up and run all tests but the slow ones
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow" -q

coverage: .venv/ready            ## check that the quick tests of the language take every branch of the loader, merge and grid
	$(BIN)/python -m coverage run -m pytest -q -m "not slow" $(addprefix tests/test_,spec.py inherit.py grid.py fuzz.py language.py tune.py compare_fairly.py folds.py)
	$(BIN)/python -m coverage report

docs: .venv/ready                ## write the generated pages and stagedkd.schema.json from the code
	$(BIN)/python -m stagedkd.spec.reference > docs/spec.md
	$(BIN)/python -m stagedkd.cli.reference > docs/commands.md
	$(BIN)/python -m stagedkd.cli.api > docs/python.md
	$(BIN)/stagedkd schema > stagedkd.schema.json

notebook: .venv/ready            ## execute docs/quickstart.ipynb, write it back: four to five minutes
	$(BIN)/python -m benchmarks.notebook

site: .venv/ready                ## build the site of the documentation in build/site; a dead link is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site
	@echo "open build/site/index.html"

check: .venv/ready               ## check lint, format, types, import contracts, and dvc.yaml against the specs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/stagedkd dvc sync --check

check-gpu:                       ## check everything that needs a CUDA GPU, on a machine with one and torch
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/check_gpu.py

bench: .venv/ready               ## print the table of speed, in an hour or more on two quiet cores (docs/performance.md)
	$(BIN)/python benchmarks/speed.py $(BENCH)

torture: .venv/ready             ## attack small projects for two minutes: kills, flipped bits, hostile specs and videos, faults
	$(BIN)/python benchmarks/torture.py $(TORTURE)

lock-requirements: .venv/bin/uv  ## update the pinned versions of what pyproject.toml requires
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev --no-header pyproject.toml -o requirements.txt -q

# The install with hashes comes first: a sync would remove the editable one, which hashes would refuse.
.venv/ready: requirements.txt pyproject.toml .venv/bin/uv
	@echo "[2/3] installing the pinned packages into .venv, among them torch with CUDA: 6.6 GB on the disk"
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.txt
	@echo "[3/3] installing stagedkd itself, from this folder"
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q stagedkd
	@touch $@
	@echo "done: call .venv/bin/stagedkd, or first: . .venv/bin/activate"

.venv/bin/uv:
	@echo "[1/3] making .venv, and installing uv into it"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv

clean:                           ## remove the environment; the store and results stay
	rm -rf .venv
