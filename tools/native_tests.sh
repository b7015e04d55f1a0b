#!/bin/sh
# The C++ tests: as shipped with every warning an error, then under the sanitizers.
set -e
cd "$(dirname "$0")/.."
for flavour in plain asan tsan; do
  case $flavour in
    plain) flags="-DPOOLALLOC_SIMGPU=ON" ;;
    asan) flags="-DPOOLALLOC_SIMGPU=OFF -DPOOLALLOC_ASAN=ON -DPOOLALLOC_UBSAN=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo" ;;
    tsan) flags="-DPOOLALLOC_SIMGPU=OFF -DPOOLALLOC_TSAN=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo" ;;
  esac
  echo "== native tests, $flavour"
  # shellcheck disable=SC2086
  cmake -G Ninja -S . -B "build/native-$flavour" -DPOOLALLOC_PYTHON=OFF -DPOOLALLOC_TESTS=ON -DPOOLALLOC_WERROR=ON $flags >/dev/null
  cmake --build "build/native-$flavour" --parallel 2
  ctest --test-dir "build/native-$flavour" --output-on-failure --parallel 2
  if [ "$flavour" = plain ]; then python3 tools/check_instructions.py build/native-plain; fi
done
