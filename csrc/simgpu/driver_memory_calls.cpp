// The driver's plain memory calls (vmm_calls.cpp has virtual memory management).
#include <algorithm>

#include "simgpu/cuda_abi.h"
#include "simgpu/memory.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

SIMGPU_API int cuMemAlloc_v2(abi::DevicePointer* pointer, std::size_t size) {
  SIM_COUNT_CALL();
  return context_call([&] {
    if (!pointer || size == 0) return kInvalidValue;
    const Lock lock = lock_sim();
    return device_malloc(size, pointer);
  });
}

SIMGPU_API int cuMemFree_v2(abi::DevicePointer pointer) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    return device_free(pointer, "cuMemFree");
  });
}

SIMGPU_API int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    const Device& device = current_device();
    if (free) *free = free_bytes(device);
    if (total) *total = device.capacity;
    return kSuccess;
  });
}

SIMGPU_API int cuMemAllocHost_v2(void** pointer, std::size_t size) {
  SIM_COUNT_CALL();
  return context_call([&] {
    if (!pointer || size == 0) return kInvalidValue;
    const Lock lock = lock_sim();
    return host_malloc(size, 0, pointer);
  });
}

SIMGPU_API int cuMemHostAlloc(void** pointer, std::size_t size, unsigned flags) {
  SIM_COUNT_CALL();
  return context_call([&] {
    if (!pointer || size == 0) return kInvalidValue;
    const Lock lock = lock_sim();
    return host_malloc(size, flags, pointer);
  });
}

SIMGPU_API int cuMemFreeHost(void* pointer) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    return host_free(pointer, "cuMemFreeHost");
  });
}

SIMGPU_API int cuMemHostRegister_v2(void* pointer, std::size_t size, unsigned flags) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    return host_register(pointer, size, flags);
  });
}

SIMGPU_API int cuMemHostUnregister(void* pointer) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    return host_unregister(pointer, "cuMemHostUnregister");
  });
}

SIMGPU_API int cuMemAllocAsync(abi::DevicePointer* pointer, std::size_t size, void* stream) {
  SIM_COUNT_CALL();
  return context_call([&] {
    if (!pointer || size == 0) return kInvalidValue;
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, "cuMemAllocAsync");
    if (!found) return kInvalidHandle;
    return malloc_async(size, *sim().pools.find(found->device->current_pool), *found, pointer);
  });
}

SIMGPU_API int cuMemFreeAsync(abi::DevicePointer pointer, void* stream) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, "cuMemFreeAsync");
    return found ? free_async(pointer, *found, "cuMemFreeAsync") : kInvalidHandle;
  });
}

SIMGPU_API int cuMemGetAddressRange_v2(abi::DevicePointer* base, std::size_t* size, abi::DevicePointer pointer) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    const PointerInfo info = find_pointer(pointer);
    if (info.type != abi::kMemoryDevice && info.type != abi::kMemoryManaged) return kNotFound;
    if (base) *base = info.base;
    if (size) *size = info.size;
    return kSuccess;
  });
}

SIMGPU_API int cuPointerGetAttribute(void* value, int attribute, abi::DevicePointer pointer) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    if (!value) return kInvalidValue;
    const Lock lock = lock_sim();
    return pointer_attribute(pointer, attribute, value);
  });
}

// Unlike the single query this succeeds for pointers CUDA does not know, and leaves zeros.
SIMGPU_API int cuPointerGetAttributes(unsigned count, int* attributes, void** values, abi::DevicePointer pointer) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    if (!attributes || !values) return kInvalidValue;
    const Lock lock = lock_sim();
    for (unsigned i = 0; i < count; ++i) {
      if (pointer_attribute(pointer, attributes[i], values[i]) != kSuccess) *static_cast<unsigned char*>(values[i]) = 0;
    }
    return kSuccess;
  });
}

// Only synchronous memory operations can be asked for, and all of them are.
SIMGPU_API int cuPointerSetAttribute(const void*, int attribute, abi::DevicePointer) {
  SIM_COUNT_CALL();
  return driver_call([&] { return attribute == abi::kPointerSyncMemops ? kSuccess : kInvalidValue; });
}
