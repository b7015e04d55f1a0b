// What the runtime's and the driver's launch calls share.
#pragma once

#include <cstddef>

#include "simgpu/cuda_abi.h"
#include "simgpu/errors.h"

namespace poolalloc::simgpu {

// Checks a launch and counts it. Takes the simulator's lock.
Error launch_kernel(const void* kernel, const abi::Dim3& grid, const abi::Dim3& block, std::size_t shared_bytes,
                    void* stream, const char* caller);
// Blocks of a kernel that an SM holds at once, for a kernel of 32 registers a thread.
int active_blocks(int block_size, std::size_t shared_bytes);
// Clusters that the device holds at once.
Error active_clusters(const abi::Dim3& block, std::size_t shared_bytes, int* clusters);
// Attributes that every simulated function has.
Error function_attribute(int attribute, int* value);

}  // namespace poolalloc::simgpu
