// How programs find driver functions at run time: cuGetProcAddress and cudaGetDriverEntryPoint.
#include "simgpu/cuda_abi.h"
#include "simgpu/driver_table.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace {

Error look_up(const char* name, void** function, int version, int* result) {
  if (!name || !function) return kInvalidValue;
  int found = abi::kProcNotFound;
  *function = reinterpret_cast<void*>(find_driver_function(name, version, &found));
  if (result) *result = found;
  return *function ? kSuccess : kNotFound;
}

// The runtime's call succeeds when it can say that there is no such function.
int entry_point(const char* name, void** function, int version, int* result) {
  return runtime_call([&] {
    const Error error = look_up(name, function, version, result);
    return error == kNotFound && result ? kSuccess : error;
  });
}

}  // namespace

SIMGPU_API int cuGetProcAddress(const char* name, void** function, int version, std::uint64_t) {
  return look_up(name, function, version, nullptr);
}

SIMGPU_API int cuGetProcAddress_v2(const char* name, void** function, int version, std::uint64_t, int* result) {
  return look_up(name, function, version, result);
}

SIMGPU_API int cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long, int* result) {
  SIM_COUNT_CALL();
  return entry_point(name, function, runtime_version(), result);
}

SIMGPU_API int cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version, unsigned long long,
                                                int* result) {
  SIM_COUNT_CALL();
  return entry_point(name, function, static_cast<int>(version), result);
}
