// What the error says when memory has run out: every figure, and what to try.
#pragma once

#include <string>

#include "core/base/stats.h"
#include "core/base/types.h"

namespace poolalloc {

struct OutOfMemoryFigures {
  Bytes asked = 0;
  StreamId stream = 0;  // who asked: its heap's own idle memory may be used
  PoolId pool;
  bool capturing = false;                 // a CUDA graph is being captured: no other heap's idle memory may be used
  Bytes free_bytes = 0, total_bytes = 0;  // of the device, all processes counted
  std::string device_name;
  bool addresses_missing = false;  // rather than memory
  double address_space = 0;        // the option
  std::string waking;              // the regions that it was asked for, where any wake
  DeviceStats stats;
};

// What torch's own error begins with, in its form, which programs and tools look for.
POOLALLOC_API std::string torchs_sentences(Bytes asked, DeviceIndex device, Bytes free_bytes, Bytes total_bytes);

std::string describe(const OutOfMemoryFigures& figures);

}  // namespace poolalloc
