// Modules: what compiled code registered with the runtime when it was loaded. Of kernels only the names are kept.
#pragma once

namespace poolalloc::simgpu {

// Device address of a __device__ or __constant__ variable on the current device, made when first asked for; null if the
// symbol was never registered. Expects the simulator's lock.
char* symbol_address(const void* symbol);

// The name of a kernel as its compiler wrote it, or null. Takes no lock but its own.
const char* kernel_name(const void* kernel);

}  // namespace poolalloc::simgpu
