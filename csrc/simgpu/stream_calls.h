// What the runtime's and the driver's stream calls share. Every function takes the simulator's lock itself.
#pragma once

#include <cstddef>

#include "simgpu/cuda_abi.h"
#include "simgpu/errors.h"

namespace poolalloc::simgpu {

Error make_stream(void** stream, unsigned flags, int priority);
Error destroy_stream(void* stream, const char* caller);
// Runs the function now, with no lock held, or keeps it in the graph being captured.
Error launch_host_function(void* stream, abi::HostFunction function, void* data, const char* caller);

// Where the answers go; every pointer but status may be null.
struct CaptureInfo {
  int* status;
  unsigned long long* id;
  void** graph;
  void*** dependencies;
  const abi::GraphEdgeData** edges;
  std::size_t* count;
};
Error capture_info(void* stream, CaptureInfo out, const char* caller);
Error exchange_capture_mode(int* mode);
Error begin_capture_call(void* stream, int mode, const char* caller);
Error end_capture_call(void* stream, void** graph, const char* caller);

}  // namespace poolalloc::simgpu
