// A test case that cannot run on this machine says so and returns; ctest counts it as skipped.
#pragma once

#include <doctest/doctest.h>

#include <cstdio>

#define SKIP(reason)                        \
  do {                                      \
    std::printf("  skipped: %s\n", reason); \
    return;                                 \
  } while (false)
