# Each target sets up .venv by itself and reuses it. PYTHON= chooses the interpreter, VENV= another folder.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test check format clean

demo: $(READY)  ## the main job, small: PiX against its baseline on the digits
	$(BIN)/downmix compare resnet29_small pix_resnet29_small --output runs/demo

test: $(READY)  ## all tests
	$(BIN)/python -m pytest

check: $(READY)  ## all that must hold before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

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
