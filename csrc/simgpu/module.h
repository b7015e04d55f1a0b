// Modules: what compiled code registered with the runtime when it was loaded. Only variables have a meaning here.
#pragma once

namespace poolalloc::simgpu {

// Device address of a __device__ or __constant__ variable on the current device, made when first asked for; null if the
// symbol was never registered. Expects the simulator's lock.
char* symbol_address(const void* symbol);

}  // namespace poolalloc::simgpu
