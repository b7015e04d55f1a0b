// Finding driver functions by name and version.
#pragma once

namespace poolalloc::simgpu {

using DriverFunction = void (*)();

// The newest function of a name that a CUDA version knows, or null; `result` says how the search ended
// (abi::ProcAddressResult).
DriverFunction find_driver_function(const char* name, int version, int* result);

}  // namespace poolalloc::simgpu
