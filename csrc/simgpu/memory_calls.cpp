// The runtime's memory calls: device, pinned, registered and managed memory, and pointer attributes.
#include <algorithm>

#include "simgpu/capture.h"
#include "simgpu/cuda_abi.h"
#include "simgpu/memory.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace {

// Puts the 64-bit address that a call finds into the caller's pointer.
template <class F>
Error into(void** out, F&& call) {
  std::uint64_t address = 0;
  const Error error = call(&address);
  *out = reinterpret_cast<void*>(address);
  return error;
}

// The rows of pitched memory begin at multiples of this.
constexpr std::uint64_t kPitch = 512;

}  // namespace

// --- device memory -----------------------------------------------------------------------------------------------

SIMGPU_API int cudaMalloc(void** pointer, std::size_t size) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!pointer) return kInvalidValue;
    const Lock lock = lock_sim();
    return into(pointer, [&](std::uint64_t* address) { return device_malloc(size, address); });
  });
}

SIMGPU_API int cudaMallocPitch(void** pointer, std::size_t* pitch, std::size_t width, std::size_t height) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!pointer || !pitch) return kInvalidValue;
    const Lock lock = lock_sim();
    *pitch = round_up(width, kPitch);
    return into(pointer, [&](std::uint64_t* address) { return device_malloc(*pitch * height, address); });
  });
}

SIMGPU_API int cudaMalloc3D(abi::PitchedPtr* pitched, abi::Extent3 extent) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!pitched) return kInvalidValue;
    const Lock lock = lock_sim();
    pitched->pitch = round_up(extent.width, kPitch);
    pitched->xsize = extent.width;
    pitched->ysize = extent.height;
    return into(&pitched->ptr, [&](std::uint64_t* address) {
      return device_malloc(pitched->pitch * extent.height * extent.depth, address);
    });
  });
}

SIMGPU_API int cudaFree(void* pointer) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    use_context();
    return device_free(reinterpret_cast<std::uint64_t>(pointer), "cudaFree");
  });
}

SIMGPU_API int cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    use_context();
    const Device& device = current_device();
    if (free) *free = free_bytes(device);
    if (total) *total = device.capacity;
    return kSuccess;
  });
}

// --- host and managed memory -------------------------------------------------------------------------------------

SIMGPU_API int cudaHostAlloc(void** pointer, std::size_t size, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!pointer) return kInvalidValue;
    const Lock lock = lock_sim();
    return host_malloc(size, flags, pointer);
  });
}

SIMGPU_API int cudaMallocHost(void** pointer, std::size_t size) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!pointer) return kInvalidValue;
    const Lock lock = lock_sim();
    return host_malloc(size, 0, pointer);
  });
}

SIMGPU_API int cudaFreeHost(void* pointer) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    return host_free(pointer, "cudaFreeHost");
  });
}

SIMGPU_API int cudaHostRegister(void* pointer, std::size_t size, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    return host_register(pointer, size, flags);
  });
}

SIMGPU_API int cudaHostUnregister(void* pointer) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    return host_unregister(pointer, "cudaHostUnregister");
  });
}

SIMGPU_API int cudaHostGetDevicePointer(void** device_pointer, void* host_pointer, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    if (!sim().host_memory.covering(reinterpret_cast<std::uint64_t>(host_pointer))) return kInvalidValue;
    *device_pointer = host_pointer;
    return kSuccess;
  });
}

SIMGPU_API int cudaHostGetFlags(unsigned* flags, void* pointer) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const HostBlock* block = sim().host_memory.covering(reinterpret_cast<std::uint64_t>(pointer));
    if (!block) return kInvalidValue;
    *flags = block->flags;
    return kSuccess;
  });
}

SIMGPU_API int cudaMallocManaged(void** pointer, std::size_t size, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!pointer) return kInvalidValue;
    const Lock lock = lock_sim();
    return managed_malloc(size, pointer);
  });
}

// Hints about managed memory change nothing here, under either signature (CUDA 12 and 13 differ in the location).
SIMGPU_API int cudaMemAdvise(const void*, std::size_t) {
  SIM_COUNT_CALL();
  return runtime_call([] { return kSuccess; });
}
SIMGPU_API int cudaMemPrefetchAsync(const void*, std::size_t) {
  SIM_COUNT_CALL();
  return runtime_call([] { return kSuccess; });
}

SIMGPU_API int cudaPointerGetAttributes(abi::PointerAttributes* attributes, const void* pointer) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!attributes) return kInvalidValue;
    const Lock lock = lock_sim();
    const PointerInfo info = find_pointer(reinterpret_cast<std::uint64_t>(pointer));
    void* const same = const_cast<void*>(pointer);
    attributes->type = info.type;
    attributes->device = info.type == abi::kMemoryUnregistered ? -2 : info.device;
    attributes->devicePointer = info.type == abi::kMemoryUnregistered ? nullptr : same;
    attributes->hostPointer = info.host ? same : nullptr;
    return kSuccess;
  });
}
