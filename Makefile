# Each target sets up .venv by itself and reuses it. PYTHON= chooses the interpreter, VENV= another folder.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A thread a process: more would wait for each other. Tests of threads ask for their own. Those that fork loaders run
# by themselves, in processes in which no runtime of other tests has started threads.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
READY = $(VENV)/.ready

.PHONY: demo test check bench gpu format clean

demo: $(READY)  ## the main job, small: PiX against its baseline on the digits
	$(BIN)/downmix compare resnet29_small pix_resnet29_small --output runs/demo --resume auto

test: $(READY)  ## all tests
	$(PYTEST) --ignore tests/train
	$(PYTEST) tests/train

check: $(READY)  ## all that must hold before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) test

NETWORKS = resnet50 pix_resnet50 resnet50:base_width=52 resnet26d ecaresnet50d_pruned

bench: $(READY)  ## times operators and networks and writes the README's tables; over half an hour on two cores
	$(BIN)/python benchmarks/ops.py
	$(BIN)/downmix bench $(NETWORKS) --output benchmarks/results/networks_cpu.csv
	$(BIN)/python benchmarks/readme.py

# On a machine with a GPU and torch already there, so without .venv: all tests, the kernels under compute-sanitizer, all
# benchmarks. compute-sanitizer comes with the CUDA toolkit; without it that step is left out, and says so.
gpu:
	$(PYTHON) -m pytest tests/ops tests/layers tests/kernels tests/train/test_cuda.py
	if command -v compute-sanitizer >/dev/null; then \
		compute-sanitizer --error-exitcode 1 $(PYTHON) -m pytest tests/kernels/test_triton.py -k "random or long"; \
	else echo "compute-sanitizer not found: kernels not checked for stray accesses" >&2; fi
	$(PYTHON) benchmarks/ops.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "downmix needs Python 3.11 or newer; choose one with make PYTHON=python3.11" >&2; exit 2; }
	@echo "Setting up $(VENV): torch and what it needs, about 6 GB, once; two minutes and more"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
