# make demo    build, then train a GPT under the default allocator, expandable_segments and poolalloc, and compare
# make figures the tables and pictures of the manual, from a fresh run of the demo and the recorded results
# make test    build, then every test; the C++ tests as shipped
# make test-sanitizers   the C++ tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
# make bench   every workload under every allocator
# make lint    formatting, rules, types, include arrows
# make gpu-check   what only a real GPU can tell: tests, driver calls, speed; OUT=... for the results, GPU_CHECK="--only tests"
# make test-segments   the tests with torch once more, with memory in whole segments
# make check-long   the random tests and the stress tests for much longer
# make soak    100 million operations of the allocator on a modelled device; OPERATIONS=... for another number
#
# TORCH=2.11.0   another torch (CUDA build); each version has its own virtual environment
# FLAVOURS="plain asan tsan"   which builds of the C++ tests `make test-native` runs; plain if nothing is said
# PYTHON=...     the Python that makes the environment
# PY=...         use this Python and what it has instead of an environment; nothing is downloaded

TORCH ?= 2.15.0
PYTHON ?= python3
ifeq ($(TORCH),2.15.0)
VENV := .venv
else
VENV := .venv-torch$(TORCH)
endif

SOURCES := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)
STAMPS := build/stamps
CPP := $(shell find csrc tests/native -name '*.cpp' -o -name '*.h')
FLAVOURS ?= plain
PART := tools/part.sh

PYTEST = $(PY) -m pytest -n 2

# What is built does not depend on torch, so all environments of the Makefile share it.
ifdef PY
BUILT := $(STAMPS)/built-$(subst /,_,$(PY))
CMAKE_BUILD := build/cmake-given
else
PY := $(VENV)/bin/python
BUILT := $(STAMPS)/built-$(VENV)
CMAKE_BUILD := build/cmake
TORCH_IS_THERE := $(STAMPS)/venv-$(VENV)
DEV := $(STAMPS)/dev-$(VENV)
endif
# Who tests wants every warning to be an error, and the C++ tests use what was built for Python. CMake remembers it.
ifneq ($(filter test% check% lint build,$(MAKECMDGOALS)),)
CMAKE_ARGS := -DPOOLALLOC_WERROR=ON
endif

.PHONY: help environment build demo figures test test-python test-native test-sanitizers check-long test-torch test-segments bench lint gpu-check soak clean
help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

# --- environment and build ---------------------------------------------------------------------------------------
# In three steps: what building and the C++ tests take; torch and the demo; the rest of the tests and `make lint`.
$(STAMPS)/tools-$(VENV): pyproject.toml tools/project_dependencies.py
	@tools/preflight.sh $(PYTHON)
	@mkdir -p $(STAMPS)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python tools/project_dependencies.py build | xargs $(VENV)/bin/python -m pip install --quiet --prefer-binary
	@touch $@

$(STAMPS)/venv-$(VENV): $(STAMPS)/tools-$(VENV)
	@echo "== adding torch $(TORCH) to $(VENV): the first time a download of some 3 GB, and 5.5 GB on disk"
	$(VENV)/bin/python -m pip install --progress-bar on --prefer-binary "torch==$(TORCH)"
	$(VENV)/bin/python tools/project_dependencies.py demo | xargs $(VENV)/bin/python -m pip install --quiet --prefer-binary
	@touch $@

$(STAMPS)/dev-$(VENV): $(STAMPS)/venv-$(VENV)
	@echo "== adding what the tests take to $(VENV)"
	$(VENV)/bin/python tools/project_dependencies.py dev | xargs $(VENV)/bin/python -m pip install --quiet --prefer-binary
	@touch $@

$(STAMPS)/built-$(VENV): $(STAMPS)/tools-$(VENV) $(SOURCES)
	@tools/preflight.sh $(PY)
	@echo "== building poolalloc: some four minutes on two cores"
	@PATH="$(abspath $(VENV))/bin:$$PATH" POOLALLOC_BUILD_DIR=$(CMAKE_BUILD) POOLALLOC_CMAKE_ARGS="$(CMAKE_ARGS)" \
	  $(PART) "build for $(VENV)" tools/show_build.sh build/build.log $(PY) -m pip install --verbose --no-build-isolation --no-deps -e .
	@touch $@

# A given Python: it must have the build tools; poolalloc is installed into it.
$(STAMPS)/built-$(subst /,_,$(PY)): $(SOURCES)
	@mkdir -p $(STAMPS)
	@POOLALLOC_BUILD_DIR=$(CMAKE_BUILD) POOLALLOC_CMAKE_ARGS="$(CMAKE_ARGS)" tools/show_build.sh build/build.log \
	  $(PY) -m pip install --verbose --no-build-isolation --no-deps -e .
	@touch $@

build: $(BUILT)

ifeq ($(PY),$(VENV)/bin/python)
environment: $(STAMPS)/venv-$(VENV) $(DEV)
else
environment:
endif

# --- what people run ---------------------------------------------------------------------------------------------
demo: $(TORCH_IS_THERE) $(BUILT)
	@mkdir -p build/demo
	$(PY) -m poolalloc bench gpt -o build/demo/results.json --html build/demo/report.html --png build/demo/report.png

# Under a path of its own the example writes into build/figures.
PY_ANYWHERE = $(if $(findstring /,$(PY)),$(abspath $(PY)),$(PY))
figures: $(TORCH_IS_THERE) $(BUILT)
	@mkdir -p build/figures
	$(PY) -m poolalloc bench gpt --gpu h100 -o build/figures/demo.json
	cd build/figures && $(PY_ANYWHERE) -m poolalloc sim -- $(PY_ANYWHERE) ../../examples/find_a_leak.py
	$(PY) -m poolalloc report build/figures/leak.npz --png build/figures/who.png
	cd build/figures && $(PY_ANYWHERE) -m poolalloc sim -- $(PY_ANYWHERE) ../../examples/colocate.py 20 turns.png
	$(PY) tools/figures.py --demo build/figures/demo.json --who build/figures/who.png --turns build/figures/turns.png

bench: $(TORCH_IS_THERE) $(BUILT)
	@mkdir -p build/bench
	$(PY) -m poolalloc bench -o build/bench/results.json --html build/bench/report.html --png build/bench/report.png

# The C++ tests need no torch, which is fetched meanwhile.
test: $(if $(DEV),$(STAMPS)/tools-$(VENV))
	@mkdir -p build
	@if [ -n "$(DEV)" ] && [ ! -e $(DEV) ]; then echo "== torch is fetched during the C++ tests: build/environment.log"; fi
	@$(MAKE) environment >build/environment.log 2>&1 & environment=$$!; $(MAKE) test-native; native=$$?; \
	  wait $$environment || { tail -20 build/environment.log; exit 1; }; exit $$native
	@$(MAKE) test-python

test-python: $(BUILT) $(DEV)
	$(PART) "Python tests without torch" $(PYTEST) --durations 20 --ignore tests/torch --ignore tests/sim --ignore tests/bench tests
	$(PART) "Python tests with torch" $(PYTEST) --durations 20 tests/torch tests/sim tests/bench
	POOLALLOC_TEST_SEGMENTS=1 $(PART) "memory in whole segments" $(PYTEST) tests/core/test_engine_rules.py tests/core/test_memory_ladder.py \
	  tests/core/test_statistics.py tests/core/test_captures.py tests/core/test_trim.py tests/core/test_oom_callbacks.py \
	  tests/core/test_exact_bins.py

# The tests that depend on torch's version, for the second version in CI.
test-torch: $(BUILT) $(DEV)
	$(PYTEST) --durations 20 -m torch_interface tests/torch tests/sim

test-segments: $(BUILT) $(DEV)
	POOLALLOC_TEST_SEGMENTS=1 $(PYTEST) tests/torch

test-native: $(BUILT)
	PATH="$(abspath $(VENV))/bin:$$PATH" tools/native_tests.sh $(PY) $(CMAKE_BUILD) $(FLAVOURS)

test-sanitizers: $(BUILT)
	$(MAKE) test-native FLAVOURS="asan tsan"

# Many random programs instead of the same few.
check-long: export POOLALLOC_LONG_TESTS := 1
check-long: test-native test-sanitizers $(BUILT) $(DEV)
	$(PYTEST) --timeout 3600 tests/core tests/trace tests/plan tests/sim

OPERATIONS ?= 100000000
soak: $(BUILT)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -G Ninja -S . -B build/soak -DPOOLALLOC_PYTHON=OFF -DPOOLALLOC_SIMGPU=OFF -DPOOLALLOC_TESTS=ON >/dev/null
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/soak --target native_soak --parallel 2
	build/soak/native_soak $(OPERATIONS)

OUT ?= build/gpu-check
gpu-check: $(TORCH_IS_THERE) $(BUILT)
	$(PY) tools/gpu_check.py --out "$(OUT)" $(GPU_CHECK)

lint: $(BUILT) $(DEV)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)
	PATH="$(abspath $(VENV))/bin:$$PATH" tools/tidy.sh
	$(PY) tools/check_includes.py
	PYTHONPATH=. $(VENV)/bin/lint-imports --no-logo
	$(PY) tools/generate_options.py --check
	$(PY) tools/generate_manual.py --check
	$(PY) tools/figures.py --check

clean:
	rm -rf build poolalloc/*.so poolalloc/simgpu/*.so*
