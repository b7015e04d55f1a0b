// The driver's launches, function attributes and occupancy.
#include <cstring>

#include "simgpu/cuda_abi.h"
#include "simgpu/launch.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

SIMGPU_API int cuLaunchKernel(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void**, void**) {
  SIM_COUNT_CALL();
  return context_call([&] {
    return launch_kernel(kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, stream,
                         "cuLaunchKernel");
  });
}

SIMGPU_API int cuLaunchKernelEx(const abi::DriverLaunchConfig* config, void* kernel, void**, void**) {
  SIM_COUNT_CALL();
  return context_call([&] {
    if (!config) return kInvalidValue;
    return launch_kernel(kernel, {config->gridDimX, config->gridDimY, config->gridDimZ},
                         {config->blockDimX, config->blockDimY, config->blockDimZ}, config->sharedMemBytes,
                         config->stream, "cuLaunchKernelEx");
  });
}

SIMGPU_API int cuLaunchCooperativeKernel(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                         unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                         void* stream, void**) {
  SIM_COUNT_CALL();
  return context_call([&] {
    return launch_kernel(kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, stream,
                         "cuLaunchCooperativeKernel");
  });
}

SIMGPU_API int cuFuncGetAttribute(int* value, int attribute, void*) {
  SIM_COUNT_CALL();
  return driver_call([&] { return value ? function_attribute(attribute, value) : kInvalidValue; });
}

SIMGPU_API int cuFuncSetAttribute(void*, int attribute, int value) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    const bool shared = attribute == abi::kFuncMaxDynamicSharedSizeBytes;
    return shared && value > sim().config.card->shared_per_block_optin ? kInvalidValue : kSuccess;
  });
}

SIMGPU_API int cuFuncSetCacheConfig(void*, int) {
  return driver_call([] { return kSuccess; });
}

SIMGPU_API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int block_size,
                                                           std::size_t shared_bytes) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    if (!blocks || block_size <= 0) return kInvalidValue;
    *blocks = active_blocks(block_size, shared_bytes);
    return kSuccess;
  });
}

SIMGPU_API int cuOccupancyMaxActiveClusters(int* clusters, void*, const abi::DriverLaunchConfig* config) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    if (!clusters || !config) return kInvalidValue;
    return active_clusters({config->blockDimX, config->blockDimY, config->blockDimZ}, config->sharedMemBytes, clusters);
  });
}

// --- descriptors for the tensor memory accelerator: only kernels read them ------------------------------------------

namespace {

int make_descriptor(void* map) {
  return driver_call([&] {
    constexpr std::size_t kDescriptorBytes = 128;
    if (!map) return kInvalidValue;
    std::memset(map, 0, kDescriptorBytes);
    return kSuccess;
  });
}

}  // namespace

SIMGPU_API int cuTensorMapEncodeTiled(void* map, int, unsigned, void*, const std::uint64_t*, const std::uint64_t*,
                                      const unsigned*, const unsigned*, int, int, int, int) {
  SIM_COUNT_CALL();
  return make_descriptor(map);
}

SIMGPU_API int cuTensorMapEncodeIm2col(void* map, int, unsigned, void*, const std::uint64_t*, const std::uint64_t*,
                                       const int*, const int*, unsigned, unsigned, const unsigned*, int, int, int,
                                       int) {
  SIM_COUNT_CALL();
  return make_descriptor(map);
}
