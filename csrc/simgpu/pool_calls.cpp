// The runtime's calls on stream-ordered memory: allocation, pools, and the memory of graphs.
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

Error give_pool(void** out, std::uint64_t handle) {
  *out = reinterpret_cast<void*>(handle);
  return kSuccess;
}

Device* device_or_null(int device) {
  return device_exists(device) ? sim().devices[static_cast<std::size_t>(device)].get() : nullptr;
}

}  // namespace

SIMGPU_API int cudaMallocAsync(void** pointer, std::size_t size, void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!pointer) return kInvalidValue;
    const Lock lock = lock_sim();
    Stream* const found = resolve_stream(stream, "cudaMallocAsync");
    if (!found) return kInvalidHandle;
    Pool& pool = *sim().pools.find(found->device->current_pool);
    return into(pointer, [&](std::uint64_t* address) { return malloc_async(size, pool, *found, address); });
  });
}

SIMGPU_API int cudaMallocFromPoolAsync(void** pointer, std::size_t size, void* pool, void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!pointer) return kInvalidValue;
    const Lock lock = lock_sim();
    Stream* const found = resolve_stream(stream, "cudaMallocFromPoolAsync");
    Pool* const from = sim().pools.find(pool);
    if (!found) return kInvalidHandle;
    if (!from) return kInvalidValue;
    return into(pointer, [&](std::uint64_t* address) { return malloc_async(size, *from, *found, address); });
  });
}

SIMGPU_API int cudaFreeAsync(void* pointer, void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Stream* const found = resolve_stream(stream, "cudaFreeAsync");
    return found ? free_async(reinterpret_cast<std::uint64_t>(pointer), *found, "cudaFreeAsync") : kInvalidHandle;
  });
}

SIMGPU_API int cudaDeviceGetDefaultMemPool(void** pool, int device) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Device* found = device_or_null(device);
    return found ? give_pool(pool, found->default_pool) : kInvalidDevice;
  });
}

SIMGPU_API int cudaDeviceGetMemPool(void** pool, int device) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Device* found = device_or_null(device);
    return found ? give_pool(pool, found->current_pool) : kInvalidDevice;
  });
}

SIMGPU_API int cudaDeviceSetMemPool(int device, void* pool) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Device* found = device_or_null(device);
    const Pool* next = sim().pools.find(pool);
    if (!found || !next || &next->device() != found) return kInvalidValue;
    found->current_pool = next->handle();
    return kSuccess;
  });
}

SIMGPU_API int cudaMemPoolCreate(void** pool, const abi::MemPoolProps* properties) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!pool || !properties || properties->allocType != abi::kAllocationPinned) return kInvalidValue;
    if (properties->location.type != abi::kLocationDevice) return kNotSupported;
    const Lock lock = lock_sim();
    Device* device = device_or_null(properties->location.id);
    if (!device) return kInvalidDevice;
    const auto [handle, made] = sim().pools.create(*device);
    made->set_handle(handle);
    return give_pool(pool, handle);
  });
}

SIMGPU_API int cudaMemPoolDestroy(void* pool) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Pool* found = sim().pools.find(pool);
    if (!found || found->handle() == found->device().default_pool) {
      violation("destroy_pool", "cudaMemPoolDestroy: %p is not a pool that can be destroyed", pool);
      return kInvalidValue;
    }
    if (found->has_live()) {
      violation("destroy_pool", "cudaMemPoolDestroy: pool %p still has live allocations", pool);
      return kInvalidValue;
    }
    if (found->device().current_pool == found->handle()) found->device().current_pool = found->device().default_pool;
    found->trim(0);
    sim().pools.destroy(pool);
    return kSuccess;
  });
}

SIMGPU_API int cudaMemPoolTrimTo(void* pool, std::size_t keep) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Pool* found = sim().pools.find(pool);
    if (!found) return kInvalidValue;
    found->trim(keep);
    return kSuccess;
  });
}

SIMGPU_API int cudaMemPoolGetAttribute(void* pool, int attribute, void* value) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Pool* found = sim().pools.find(pool);
    return found && value ? found->get_attribute(attribute, value) : kInvalidValue;
  });
}

SIMGPU_API int cudaMemPoolSetAttribute(void* pool, int attribute, void* value) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Pool* found = sim().pools.find(pool);
    return found && value ? found->set_attribute(attribute, value) : kInvalidValue;
  });
}

SIMGPU_API int cudaMemPoolSetAccess(void* pool, const abi::MemAccessDesc* descriptors, std::size_t count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Pool* found = sim().pools.find(pool);
    if (!found || (count > 0 && !descriptors)) return kInvalidValue;
    for (std::size_t i = 0; i < count; ++i) {
      if (descriptors[i].location.type != abi::kLocationDevice) return kNotSupported;
      if (!device_exists(descriptors[i].location.id)) return kInvalidDevice;
    }
    for (std::size_t i = 0; i < count; ++i) found->grant(descriptors[i].location.id, descriptors[i].flags);
    return kSuccess;
  });
}

SIMGPU_API int cudaMemPoolGetAccess(int* flags, void* pool, const abi::MemLocation* location) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Pool* found = sim().pools.find(pool);
    if (!found || !flags || !location || !device_exists(location->id)) return kInvalidValue;
    *flags = found->access(location->id);
    return kSuccess;
  });
}

// Memory of graphs comes from the device's pool and is held only while used, so reserved equals used.
SIMGPU_API int cudaDeviceGetGraphMemAttribute(int device, int attribute, void* value) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Device* found = device_or_null(device);
    if (!found || !value || attribute < 0 || attribute > abi::kGraphMemReservedHigh) return kInvalidValue;
    const bool high = attribute == abi::kGraphMemUsedHigh || attribute == abi::kGraphMemReservedHigh;
    *static_cast<std::uint64_t*>(value) = high ? found->graph_memory_high : found->graph_memory_used;
    return kSuccess;
  });
}

SIMGPU_API int cudaDeviceSetGraphMemAttribute(int device, int attribute, void* value) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Device* found = device_or_null(device);
    const bool high = attribute == abi::kGraphMemUsedHigh || attribute == abi::kGraphMemReservedHigh;
    if (!found || !value || !high || *static_cast<std::uint64_t*>(value) != 0) return kInvalidValue;
    found->graph_memory_high = found->graph_memory_used;
    return kSuccess;
  });
}

SIMGPU_API int cudaDeviceGraphMemTrim(int device) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Device* found = device_or_null(device);
    if (!found) return kInvalidDevice;
    trim_pools_to_threshold(*found);
    return kSuccess;
  });
}
