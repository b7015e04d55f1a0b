#!/bin/sh
# The C++ tests: as shipped with every warning an error, then under the sanitizers.
# Usage: native_tests.sh PYTHON BUILD [FLAVOUR...]; PYTHON has the development tools, BUILD is where CMake built its poolalloc.
set -e
cd "$(dirname "$0")/.."
python=$("$1" -c "import sys; print(sys.executable)")
built=$2
shift 2
[ $# -gt 0 ] || set -- plain asan tsan
for flavour; do
  build="build/native-$flavour"
  case $flavour in
    plain) build=$built flags="" ;;
    asan) flags="-DPOOLALLOC_ASAN=ON -DPOOLALLOC_UBSAN=ON" ;;
    tsan) flags="-DPOOLALLOC_TSAN=ON" ;;
  esac
  if [ "$flavour" != plain ]; then
    flags="$flags -DPOOLALLOC_EVERY_CHECK=${POOLALLOC_LONG_TESTS:+ON}"
    flags="$flags -DPOOLALLOC_PYTHON=OFF -DPOOLALLOC_SIMGPU=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo"
  fi
  # shellcheck disable=SC2086
  cmake -G Ninja -S . -B "$build" -DPOOLALLOC_TESTS=ON -DPOOLALLOC_WERROR=ON -DPython_EXECUTABLE="$python" \
    $flags >/dev/null
  tools/part.sh "C++ tests, $flavour: compile" cmake --build "$build" --parallel 2 --target native_tests
  tools/part.sh "C++ tests, $flavour: run" ctest --test-dir "$build" --output-on-failure --parallel 2
  if [ "$flavour" = plain ]; then "$python" tools/check_instructions.py "$build"; fi
done
