#!/bin/sh
# clang-tidy over csrc/core, with the flags CMake compiles it with.
set -e
cd "$(dirname "$0")/.."
cmake -G Ninja -S . -B build/tidy -DPOOLALLOC_PYTHON=OFF -DPOOLALLOC_SIMGPU=OFF >/dev/null
find csrc/core -name "*.cpp" | sort | xargs -P 2 -n 4 clang-tidy --quiet -p build/tidy 2>/dev/null
