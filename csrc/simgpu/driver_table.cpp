// The table of driver functions: for cuGetProcAddress, and for libcuda.so.1, whose trampolines jump through it.
#include "simgpu/driver_table.h"

#include <cstring>
#include <iterator>

#include "simgpu/cuda_abi.h"

// Only their addresses matter here, so every function is declared alike.
#define FUNCTION(name, version, symbol) extern "C" void symbol();
#include "simgpu/driver.def"
#undef FUNCTION

extern "C" __attribute__((visibility("default"))) const poolalloc::simgpu::DriverFunction simgpu_driver_table[] = {
#define FUNCTION(name, version, symbol) symbol,
#include "simgpu/driver.def"
#undef FUNCTION
};

namespace poolalloc::simgpu {
namespace {

struct Entry {
  const char* name;
  int version;
};
constexpr Entry kEntries[] = {
#define FUNCTION(name, version, symbol) {#name, version},
#include "simgpu/driver.def"
#undef FUNCTION
};

}  // namespace

DriverFunction find_driver_function(const char* name, int version, int* result) {
  int best = -1;
  int newest = -1;
  *result = abi::kProcNotFound;
  for (int i = 0; i < static_cast<int>(std::size(kEntries)); ++i) {
    if (std::strcmp(kEntries[i].name, name) != 0) continue;
    if (kEntries[i].version > version) {
      if (best < 0) *result = abi::kProcVersionTooOld;
    } else if (kEntries[i].version > newest) {
      best = i;
      newest = kEntries[i].version;
      *result = abi::kProcFound;
    }
  }
  return best < 0 ? nullptr : simgpu_driver_table[best];
}

}  // namespace poolalloc::simgpu
