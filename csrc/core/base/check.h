// Assertions of validate(): they stay on in release builds, since validate() is only called by those who want it.
#pragma once

#include <string>

#include "core/base/errors.h"

#define POOLALLOC_ENSURE(condition, what)                                                                      \
  do {                                                                                                         \
    if (!(condition)) throw ::poolalloc::InvariantViolation(std::string(what) + " (" #condition " is false)"); \
  } while (false)
