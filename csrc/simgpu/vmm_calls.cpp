// Virtual memory management of the driver: reserve addresses, create physical memory, map, set access, unmap, release.
//
// Every rule that the driver documents is checked, and a broken one is named: a simulated device that let them pass
// would hide the bug until a real one.
#include <algorithm>
#include <vector>

#include "simgpu/cuda_abi.h"
#include "simgpu/driver_work.h"
#include "simgpu/memory.h"
#include "simgpu/report.h"
#include "simgpu/shared_contents.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace {

using abi::DevicePointer;

// Frame of these calls: the card must have virtual memory management.
template <class F>
int vmm_call(F&& call) {
  return driver_call([&] { return sim().config.virtual_memory ? call() : kNotSupported; });
}

unsigned long long shown(std::uint64_t value) { return value; }

// The reservation that covers a whole range, or null.
Region* reservation_of(DevicePointer address, std::size_t size) {
  Region* region = sim().addresses.covering(address);
  if (!region || region->kind != RegionKind::kReservation) return nullptr;
  return size <= region->base + region->size - address ? region : nullptr;
}

// The mappings that fill a range exactly, edge to edge; empty if they do not.
std::vector<std::map<std::uint64_t, Mapping>::iterator> mappings_filling(Region& region, DevicePointer address,
                                                                         std::size_t size) {
  std::vector<std::map<std::uint64_t, Mapping>::iterator> found;
  std::uint64_t at = address;
  for (auto mapping = region.mappings.find(address); at < address + size; ++mapping) {
    if (mapping == region.mappings.end() || mapping->first != at) return {};
    found.push_back(mapping);
    at += mapping->second.size;
  }
  return at == address + size ? found : std::vector<std::map<std::uint64_t, Mapping>::iterator>{};
}

Error check_properties(const abi::AllocationProp* properties) {
  if (!properties || properties->type != abi::kAllocationPinned) return kInvalidValue;
  if (properties->location.type != abi::kLocationDevice) return kNotSupported;
  if ((properties->requestedHandleTypes & ~abi::kHandlePosixFd) != 0) return kNotSupported;
  return device_exists(properties->location.id) ? kSuccess : kInvalidDevice;
}

std::uint64_t add_handle(Extent& extent) {
  if (extent.handle == 0) extent.handle = sim().allocations.create(&extent).first;
  ++extent.handle_references;
  return extent.handle;
}

Extent* resolve_allocation(std::uint64_t handle, const char* kind, const char* caller) {
  Extent** found = sim().allocations.find(handle);
  if (!found) {
    const bool released = sim().allocations.state(handle) == HandleState::kDestroyed;
    violation(kind, "%s: handle 0x%llx %s", caller, shown(handle), released ? "was released" : "was never created");
  }
  return found ? *found : nullptr;
}

}  // namespace

SIMGPU_API int cuMemGetAllocationGranularity(std::size_t* granularity, const abi::AllocationProp* properties, int) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    if (!granularity) return kInvalidValue;
    if (const Error error = check_properties(properties); error != kSuccess) return error;
    *granularity = kGranularity;
    return kSuccess;
  });
}

SIMGPU_API int cuMemAddressReserve(DevicePointer* address, std::size_t size, std::size_t alignment, DevicePointer hint,
                                   unsigned long long flags) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    const bool power = (alignment & (alignment - 1)) == 0;
    if (!address || size == 0 || size % kGranularity != 0 || !power || flags != 0) return kInvalidValue;
    // No driver promises more: some ignore a larger alignment, some refuse it.
    if (alignment > kGranularity) return kNotSupported;
    const Lock lock = lock_sim();
    const Region* region =
        sim().addresses.create(RegionKind::kReservation, size, alignment, thread_state().device, hint);
    if (!region) return kOutOfMemory;
    note_work(Work::reserve, 1, 0);
    *address = region->base;
    return kSuccess;
  });
}

SIMGPU_API int cuMemAddressFree(DevicePointer address, std::size_t size) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    const Lock lock = lock_sim();
    Region* region = sim().addresses.at(address);
    if (!region || region->kind != RegionKind::kReservation || region->size != size) {
      violation("address_free_unknown", "cuMemAddressFree: 0x%llx + 0x%llx is not a reservation%s", shown(address),
                shown(size), sim().addresses.was_freed(address) ? " (it was freed before)" : "");
      return kInvalidValue;
    }
    if (!region->mappings.empty()) {
      violation("address_free_mapped", "cuMemAddressFree: 0x%llx still has %zu mappings", shown(address),
                region->mappings.size());
      return kInvalidValue;
    }
    sim().addresses.destroy(*region);
    note_work(Work::release, 1, 0);
    return kSuccess;
  });
}

SIMGPU_API int cuMemCreate(std::uint64_t* handle, std::size_t size, const abi::AllocationProp* properties,
                           unsigned long long flags) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    if (!handle || size == 0 || size % kGranularity != 0 || flags != 0) return kInvalidValue;
    if (const Error error = check_properties(properties); error != kSuccess) return error;
    const Lock lock = lock_sim();
    Extent* extent = create_extent(*sim().devices[static_cast<std::size_t>(properties->location.id)], size, true);
    if (!extent) return kOutOfMemory;
    extent->handle_types = properties->requestedHandleTypes;
    extent->rdma = properties->allocFlags.gpuDirectRDMACapable != 0;
    *handle = add_handle(*extent);
    note_work(Work::create, 1, size);
    return kSuccess;
  });
}

SIMGPU_API int cuMemRelease(std::uint64_t handle) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    const Lock lock = lock_sim();
    Extent* extent = resolve_allocation(handle, "release_unknown_handle", "cuMemRelease");
    if (!extent) return kInvalidValue;
    note_work(Work::destroy, 1, extent->size);
    if (--extent->handle_references > 0) return kSuccess;
    sim().allocations.destroy(handle);
    extent->handle = 0;
    release_extent(*extent);
    return kSuccess;
  });
}

SIMGPU_API int cuMemMap(DevicePointer address, std::size_t size, std::size_t offset, std::uint64_t handle,
                        unsigned long long flags) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    // The driver documents that the offset must be zero for now.
    if (size == 0 || size % kGranularity != 0 || address % kGranularity != 0 || offset != 0 || flags != 0) {
      return kInvalidValue;
    }
    const Lock lock = lock_sim();
    Extent* extent = resolve_allocation(handle, "map_unknown_handle", "cuMemMap");
    if (!extent || size > extent->size) return kInvalidValue;
    Region* region = reservation_of(address, size);
    if (!region) {
      violation("map_outside_reservation", "cuMemMap: 0x%llx + 0x%llx is not inside one reservation", shown(address),
                shown(size));
      return kInvalidValue;
    }
    const auto next = region->mappings.lower_bound(address);
    const bool over_next = next != region->mappings.end() && next->first < address + size;
    const bool over_previous =
        next != region->mappings.begin() && std::prev(next)->first + std::prev(next)->second.size > address;
    if (over_next || over_previous) {
      violation("map_over_live", "cuMemMap: 0x%llx + 0x%llx overlaps a live mapping", shown(address), shown(size));
      return kInvalidValue;
    }
    map_extent(*region, address, *extent, size, 0);
    note_work(Work::map, 1, size);
    return kSuccess;
  });
}

SIMGPU_API int cuMemUnmap(DevicePointer address, std::size_t size) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    const Lock lock = lock_sim();
    Region* region = size == 0 ? nullptr : reservation_of(address, size);
    const auto mappings =
        region ? mappings_filling(*region, address, size) : std::vector<std::map<std::uint64_t, Mapping>::iterator>{};
    if (mappings.empty()) {
      violation("unmap_not_mapped", "cuMemUnmap: 0x%llx + 0x%llx is not exactly covered by mappings", shown(address),
                shown(size));
      return kInvalidValue;
    }
    for (const auto mapping : mappings) unmap_extent(*region, mapping);
    note_work(Work::unmap, mappings.size(), size);
    return kSuccess;
  });
}

SIMGPU_API int cuMemSetAccess(DevicePointer address, std::size_t size, const abi::MemAccessDesc* descriptors,
                              std::size_t count) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    if (size == 0 || !descriptors || count == 0) return kInvalidValue;
    for (std::size_t i = 0; i < count; ++i) {
      const int flags = descriptors[i].flags;
      if (descriptors[i].location.type != abi::kLocationDevice) return kNotSupported;
      if (!device_exists(descriptors[i].location.id)) return kInvalidDevice;
      if (flags != abi::kAccessNone && flags != abi::kAccessRead && flags != abi::kAccessReadWrite) {
        return kInvalidValue;
      }
    }
    const Lock lock = lock_sim();
    Region* region = reservation_of(address, size);
    const auto mappings =
        region ? mappings_filling(*region, address, size) : std::vector<std::map<std::uint64_t, Mapping>::iterator>{};
    if (mappings.empty()) {
      violation("set_access_unmapped", "cuMemSetAccess: 0x%llx + 0x%llx is not exactly covered by mappings",
                shown(address), shown(size));
      return kInvalidValue;
    }
    const VmmFault fault = sim().config.vmm_fault;
    for (const auto mapping : mappings) {
      const Extent& extent = *mapping->second.extent;
      if (fault == VmmFault::access || (fault == VmmFault::rdma && extent.rdma)) return kUnknown;
      for (std::size_t i = 0; i < count; ++i) {
        const int device = descriptors[i].location.id;
        if (device != extent.device->index && !connected(device, extent.device->index)) return kInvalidDevice;
      }
    }
    for (const auto mapping : mappings) {
      for (std::size_t i = 0; i < count; ++i) {
        mapping->second.access[static_cast<std::size_t>(descriptors[i].location.id)] =
            static_cast<std::uint8_t>(descriptors[i].flags);
      }
    }
    note_work(Work::allow_access, mappings.size() * count, size * count);
    return kSuccess;
  });
}

SIMGPU_API int cuMemGetAccess(unsigned long long* flags, const abi::MemLocation* location, DevicePointer address) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    if (!flags || !location || !device_exists(location->id)) return kInvalidValue;
    const Lock lock = lock_sim();
    const PointerInfo info = find_pointer(address);
    if (!info.region || info.type != abi::kMemoryDevice) return kInvalidValue;
    const auto mapping = std::prev(info.region->mappings.upper_bound(address));
    *flags = mapping->second.access[static_cast<std::size_t>(location->id)];
    return kSuccess;
  });
}

SIMGPU_API int cuMemRetainAllocationHandle(std::uint64_t* handle, void* address) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    if (!handle) return kInvalidValue;
    const Lock lock = lock_sim();
    const auto at = reinterpret_cast<std::uint64_t>(address);
    const PointerInfo info = find_pointer(at);
    if (!info.region || info.region->kind != RegionKind::kReservation || info.type != abi::kMemoryDevice) {
      return kInvalidValue;
    }
    Extent& extent = *std::prev(info.region->mappings.upper_bound(at))->second.extent;
    if (extent.handle == 0) retain_extent(extent);
    *handle = add_handle(extent);
    return kSuccess;
  });
}

SIMGPU_API int cuMemGetAllocationPropertiesFromHandle(abi::AllocationProp* properties, std::uint64_t handle) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    const Lock lock = lock_sim();
    const Extent* extent = resolve_allocation(handle, "use_unknown_handle", "cuMemGetAllocationPropertiesFromHandle");
    if (!extent || !properties) return kInvalidValue;
    *properties = {};
    properties->type = abi::kAllocationPinned;
    properties->requestedHandleTypes = extent->handle_types;
    properties->location = {abi::kLocationDevice, extent->device->index};
    return kSuccess;
  });
}

SIMGPU_API int cuMemExportToShareableHandle(void* shareable, std::uint64_t handle, int type, unsigned long long) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    const Lock lock = lock_sim();
    Extent* extent = resolve_allocation(handle, "use_unknown_handle", "cuMemExportToShareableHandle");
    if (!extent || !shareable) return kInvalidValue;
    if (type != abi::kHandlePosixFd) return kNotSupported;
    if ((extent->handle_types & type) == 0) return kInvalidValue;
    const int file = share_contents(*extent) ? name_shared(*extent) : -1;
    if (file < 0) return kOperatingSystem;
    *static_cast<int*>(shareable) = file;
    return kSuccess;
  });
}

SIMGPU_API int cuMemImportFromShareableHandle(std::uint64_t* handle, void* shareable, int type) {
  SIM_COUNT_CALL();
  return vmm_call([&] {
    if (!handle) return kInvalidValue;
    if (type != abi::kHandlePosixFd) return kNotSupported;
    const Lock lock = lock_sim();
    Extent* extent = open_shared(static_cast<int>(reinterpret_cast<std::intptr_t>(shareable)));
    if (!extent) return kInvalidValue;
    // The reference belongs to the handle: one that exists already has it.
    if (extent->handle != 0) release_extent(*extent);
    extent->handle_types = type;
    *handle = add_handle(*extent);
    return kSuccess;
  });
}

// Memory shared by the multicast hardware of several devices is not simulated.
SIMGPU_API int cuMulticastCreate(std::uint64_t*, const void*) {
  return unsupported("cuMulticastCreate"), kNotSupported;
}
SIMGPU_API int cuMulticastAddDevice(std::uint64_t, int) { return unsupported("cuMulticastAddDevice"), kNotSupported; }
SIMGPU_API int cuMulticastBindMem(std::uint64_t, std::size_t, std::uint64_t, std::size_t, std::size_t,
                                  unsigned long long) {
  return unsupported("cuMulticastBindMem"), kNotSupported;
}
SIMGPU_API int cuMulticastUnbind(std::uint64_t, int, std::size_t, std::size_t) {
  return unsupported("cuMulticastUnbind"), kNotSupported;
}
