#!/bin/sh
# One clear line for what a fresh machine lacks. Usage: preflight.sh PYTHON
python=$1
fail() { echo "poolalloc: $1" >&2; exit 2; }

command -v "$python" >/dev/null 2>&1 || fail "no Python ($python); install Python 3.10 or newer, or name one: make PYTHON=python3.12"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$("$python" --version 2>&1) is too old; Python 3.10 or newer is needed, name one: make PYTHON=python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python has no venv module; install it, for example: apt-get install python3-venv"
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
  || fail "the headers of $python are missing; install them, for example: apt-get install python3-dev"
compiler=${CXX:-c++}
command -v "$compiler" >/dev/null 2>&1 || fail "no C++ compiler ($compiler); install one, for example: apt-get install g++"
printf '#include <bit>\nint main() { return std::countr_zero(1u); }\n' | "$compiler" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null \
  || fail "$compiler does not know C++20; g++ 11 or newer is needed"
