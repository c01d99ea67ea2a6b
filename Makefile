# Each target sets up .venv by itself and reuses it. PYTHON= chooses the interpreter, VENV= another folder.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A thread a process: more would wait for each other. Tests of threads ask for their own. Those that fork loaders run
# by themselves, in processes in which no runtime of other tests has started threads.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python $(IN_PROCESSES)
GPU_PYTEST = OMP_NUM_THREADS=1 $(PYTHON) $(IN_PROCESSES)
IN_PROCESSES = -m pytest -n auto --maxprocesses 8 --dist worksteal
READY = $(VENV)/.ready

.PHONY: demo test check bench gpu gpu-test gpu-sanitize gpu-pix gpu-pools gpu-networks format clean

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
	$(BIN)/python -m benchmarks.ops
	$(BIN)/downmix bench $(NETWORKS) --batch_sizes 1 8 32 --output benchmarks/results/networks_cpu.csv
	$(BIN)/python -m benchmarks.readme

# On a machine with a GPU and torch already there, so without .venv; each of the five takes less than ten minutes.
gpu: gpu-test gpu-sanitize gpu-pix gpu-pools gpu-networks

gpu-test:  ## all tests; those that need a package which is missing are skipped, and say so
	$(GPU_PYTEST) tests/kernels tests/ops
	$(GPU_PYTEST) tests --ignore tests/kernels --ignore tests/ops --ignore tests/train
	$(GPU_PYTEST) tests/train

# compute-sanitizer comes with the CUDA toolkit; it sees stray accesses only where each tensor is an allocation.
gpu-sanitize:  ## some random cases of each kernel under compute-sanitizer
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 \
		$(PYTHON) -m pytest tests/kernels/test_triton.py tests/kernels/test_triton_layers.py -k "long or random and (0 or 1 or 2)"

GPU_OPS = $(PYTHON) -m benchmarks.ops --processes $$(nproc) --only

gpu-pix:
	$(GPU_OPS) pick_or_mix
	$(GPU_OPS) pix_layer

gpu-pools:
	for op in soft_pool lip power stochastic mixed s3; do $(GPU_OPS) $$op || exit; done

gpu-networks:
	$(PYTHON) -m downmix bench $(NETWORKS) --device cuda --dtype bfloat16 --batch_sizes 1 32 256 \
		--engines eager cuda_graph --output \
		benchmarks/results/networks_$$($(PYTHON) -c "from benchmarks.ops import device_word; print(device_word())").csv

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
