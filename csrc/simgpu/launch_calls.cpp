// Kernel launches: checked for what a device would refuse, counted, and nothing else. With them occupancy and the
// attributes of functions, which libraries use to choose launch sizes.
#include <algorithm>

#include "simgpu/capture.h"
#include "simgpu/cuda_abi.h"
#include "simgpu/launch.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace poolalloc::simgpu {

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxBlockZ = 64;
constexpr unsigned kMaxGridYZ = 65535;
constexpr int kRegistersPerThread = 32;
constexpr int kWarp = 32;

}  // namespace

Error launch_kernel(const void* kernel, const abi::Dim3& grid, const abi::Dim3& block, std::size_t shared_bytes,
                    void* stream, const char* caller) {
  const std::uint64_t threads = static_cast<std::uint64_t>(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || threads > kMaxThreads || block.z > kMaxBlockZ ||
      grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) {
    return kInvalidConfiguration;
  }
  if (shared_bytes > static_cast<std::size_t>(sim().config.card->shared_per_block_optin)) return kInvalidValue;
  const Lock lock = lock_sim();
  use_context();
  Stream* found = resolve_stream(stream, caller);
  if (!found) return kInvalidHandle;
  found->device->last_kernel = kernel;
  return enqueue(*found, abi::kNodeKernel, {});
}

// What fits an SM at once, by threads, blocks, registers and shared memory.
int active_blocks(int block_size, std::size_t shared_bytes) {
  const Card& card = *sim().config.card;
  const int threads = (block_size + kWarp - 1) / kWarp * kWarp;
  int blocks = std::min(card.max_blocks_per_sm, card.max_threads_per_sm / threads);
  blocks = std::min(blocks, card.registers_per_sm / (threads * kRegistersPerThread));
  if (shared_bytes > 0) {
    blocks = std::min(blocks, static_cast<int>(static_cast<std::size_t>(card.shared_per_sm) / shared_bytes));
  }
  return blocks;
}

Error active_clusters(const abi::Dim3& block, std::size_t shared_bytes, int* clusters) {
  const std::uint64_t threads = static_cast<std::uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads) return kInvalidConfiguration;
  // A cluster spreads over two SMs at the least.
  *clusters = active_blocks(static_cast<int>(threads), shared_bytes) * sim().config.card->sm_count / 2;
  return kSuccess;
}

Error function_attribute(int attribute, int* value) {
  const Card& card = *sim().config.card;
  switch (attribute) {
    case abi::kFuncMaxThreadsPerBlock:
      *value = kMaxThreads;
      return kSuccess;
    case abi::kFuncNumRegs:
      *value = kRegistersPerThread;
      return kSuccess;
    case abi::kFuncPtxVersion:
    case abi::kFuncBinaryVersion:
      *value = card.major * 10 + card.minor;
      return kSuccess;
    case abi::kFuncMaxDynamicSharedSizeBytes:
      *value = card.shared_per_block_optin;
      return kSuccess;
    default:
      if (attribute < 0 || attribute > 15) return kInvalidValue;
      *value = 0;
      return kSuccess;
  }
}

}  // namespace poolalloc::simgpu

// --- launches ----------------------------------------------------------------------------------------------------

SIMGPU_API int cudaLaunchKernel(const void* kernel, abi::Dim3 grid, abi::Dim3 block, void**, std::size_t shared_bytes,
                                void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return launch_kernel(kernel, grid, block, shared_bytes, stream, "cudaLaunchKernel"); });
}

// What the <<<>>> of CUDA 13 compiles to.
SIMGPU_API int __cudaLaunchKernel(void* kernel, abi::Dim3 grid, abi::Dim3 block, void**, std::size_t shared_bytes,
                                  void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return launch_kernel(kernel, grid, block, shared_bytes, stream, "cudaLaunchKernel"); });
}

SIMGPU_API int cudaLaunchCooperativeKernel(const void* kernel, abi::Dim3 grid, abi::Dim3 block, void**,
                                           std::size_t shared_bytes, void* stream) {
  SIM_COUNT_CALL();
  return runtime_call(
      [&] { return launch_kernel(kernel, grid, block, shared_bytes, stream, "cudaLaunchCooperativeKernel"); });
}

SIMGPU_API int cudaLaunchKernelExC(const abi::LaunchConfig* config, const void* kernel, void**) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!config) return kInvalidValue;
    return launch_kernel(kernel, config->gridDim, config->blockDim, config->dynamicSharedBytes, config->stream,
                         "cudaLaunchKernelExC");
  });
}

namespace {

// The configuration of a <<<>>> waits here between its two halves; launches nest.
struct CallConfiguration {
  abi::Dim3 grid, block;
  std::size_t shared_bytes;
  void* stream;
};
constexpr int kNesting = 16;
thread_local CallConfiguration configurations[kNesting];
thread_local int configuration_depth = 0;

}  // namespace

SIMGPU_API unsigned __cudaPushCallConfiguration(abi::Dim3 grid, abi::Dim3 block, std::size_t shared_bytes,
                                                void* stream) {
  if (configuration_depth == kNesting) return 1;
  configurations[configuration_depth++] = {grid, block, shared_bytes, stream};
  return 0;
}

SIMGPU_API int __cudaPopCallConfiguration(abi::Dim3* grid, abi::Dim3* block, std::size_t* shared_bytes, void* stream) {
  if (configuration_depth == 0) return kInvalidConfiguration;
  const CallConfiguration& top = configurations[--configuration_depth];
  *grid = top.grid;
  *block = top.block;
  *shared_bytes = top.shared_bytes;
  *static_cast<void**>(stream) = top.stream;
  return kSuccess;
}

// --- attributes and occupancy ------------------------------------------------------------------------------------

SIMGPU_API int cudaFuncGetAttributes(abi::FuncAttributes* attributes, const void*) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!attributes) return kInvalidValue;
    *attributes = {};
    function_attribute(abi::kFuncMaxThreadsPerBlock, &attributes->maxThreadsPerBlock);
    function_attribute(abi::kFuncNumRegs, &attributes->numRegs);
    function_attribute(abi::kFuncPtxVersion, &attributes->ptxVersion);
    function_attribute(abi::kFuncBinaryVersion, &attributes->binaryVersion);
    function_attribute(abi::kFuncMaxDynamicSharedSizeBytes, &attributes->maxDynamicSharedSizeBytes);
    attributes->preferredShmemCarveout = -1;
    return kSuccess;
  });
}

SIMGPU_API int cudaFuncSetAttribute(const void*, int attribute, int value) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const bool shared = attribute == abi::kFuncMaxDynamicSharedSizeBytes;
    return shared && value > sim().config.card->shared_per_block_optin ? kInvalidValue : kSuccess;
  });
}

SIMGPU_API int cudaKernelSetAttributeForDevice(void*, int attribute, int value, int device) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!device_exists(device)) return kInvalidDevice;
    const bool shared = attribute == abi::kFuncMaxDynamicSharedSizeBytes;
    return shared && value > sim().config.card->shared_per_block_optin ? kInvalidValue : kSuccess;
  });
}

SIMGPU_API int cudaFuncSetCacheConfig(const void*, int) {
  return runtime_call([] { return kSuccess; });
}

SIMGPU_API int cudaFuncSetSharedMemConfig(const void*, int) {
  return runtime_call([] { return kSuccess; });
}

SIMGPU_API int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int block_size,
                                                             std::size_t shared_bytes) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!blocks || block_size <= 0) return kInvalidValue;
    *blocks = active_blocks(block_size, shared_bytes);
    return kSuccess;
  });
}

SIMGPU_API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int block_size,
                                                                      std::size_t shared_bytes, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!blocks || block_size <= 0) return kInvalidValue;
    *blocks = active_blocks(block_size, shared_bytes);
    return kSuccess;
  });
}

SIMGPU_API int cudaOccupancyAvailableDynamicSMemPerBlock(std::size_t* bytes, const void*, int blocks, int block_size) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!bytes || blocks <= 0 || block_size <= 0) return kInvalidValue;
    const Card& card = *sim().config.card;
    *bytes = static_cast<std::size_t>(std::min(card.shared_per_sm / blocks, card.shared_per_block_optin));
    return kSuccess;
  });
}

SIMGPU_API int cudaOccupancyMaxActiveClusters(int* clusters, const void*, const abi::LaunchConfig* config) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!clusters || !config) return kInvalidValue;
    return active_clusters(config->blockDim, config->dynamicSharedBytes, clusters);
  });
}

SIMGPU_API int cudaOccupancyMaxPotentialClusterSize(int* size, const void*, const abi::LaunchConfig*) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    *size = sim().config.card->major >= 9 ? 8 : 1;
    return kSuccess;
  });
}
