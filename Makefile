# The two commands of the README, `make demo` and `make test`, work in a fresh clone: they make .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check benchmark wheel clean

demo: $(VENV)/.demo  ## fine-tune a small InternImage on real images, save, reload, classify (a minute, no network)
	$(BIN)/python scripts/demo.py --output-dir demo_output

test: $(VENV)/.dev  ## all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files mypy

benchmark: $(VENV)/.dev  ## InternImage-T beside ConvNeXt-T on this machine
	$(BIN)/python scripts/benchmark.py

wheel: $(VENV)/.dev  ## dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist demo_output

# torch first and by itself, so that no other package chooses a build of several gigabytes.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(INSTALL) --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(INSTALL) --editable ".[dev]"
	touch $@ $(VENV)/.demo
