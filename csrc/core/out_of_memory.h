// What the error says when memory has run out: every figure, and what to try.
#pragma once

#include <string>

#include "core/stats.h"
#include "core/types.h"

namespace poolalloc {

struct OutOfMemoryFigures {
  Bytes asked = 0;
  Bytes free_bytes = 0, total_bytes = 0;  // of the device, all processes counted
  std::string device_name;
  bool addresses_missing = false;  // rather than memory
  double address_space = 0;        // the option
  DeviceStats stats;
};

std::string describe(const OutOfMemoryFigures& figures);

}  // namespace poolalloc
