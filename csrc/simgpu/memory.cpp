// Allocation and release of device, host and managed memory; see memory.h.
#include "simgpu/memory.h"

#include <algorithm>

#include "simgpu/capture.h"
#include "simgpu/cuda_abi.h"
#include "simgpu/driver_work.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

unsigned long long shown(std::uint64_t address) { return address; }

void report_bad_free(std::uint64_t address, bool freed, const char* caller) {
  if (freed) {
    violation("double_free", "%s: 0x%llx was freed before", caller, shown(address));
  } else {
    violation("free_unknown", "%s: 0x%llx was not allocated by this call's counterpart", caller, shown(address));
  }
}

}  // namespace

Error device_malloc(std::uint64_t size, std::uint64_t* address) {
  *address = 0;
  if (const Error error = check_unsafe_call(); error != kSuccess) return error;
  use_context();
  if (size == 0) return kSuccess;
  Device& device = current_device();
  if (size > device.capacity) return kOutOfMemory;
  const std::uint64_t rounded = round_up(size, kGranularity);
  Extent* extent = create_extent(device, rounded, true);
  if (!extent) return kOutOfMemory;
  Region* region = sim().addresses.create(RegionKind::kMalloc, size, kGranularity, device.index);
  if (region) {
    Mapping& mapping = map_extent(*region, region->base, *extent, rounded, 0);
    mapping.access[static_cast<std::size_t>(device.index)] = abi::kAccessReadWrite;
    *address = region->base;
    note_work(Work::allocate_segment, 1, rounded);
  }
  release_extent(*extent);
  return region ? kSuccess : kOutOfMemory;
}

Error device_free(std::uint64_t address, const char* caller) {
  if (address == 0) return kSuccess;
  if (const Error error = check_unsafe_call(); error != kSuccess) return error;
  AddressSpace& addresses = sim().addresses;
  Region* region = addresses.contains(address) ? addresses.covering(address) : nullptr;
  if (region && region->kind == RegionKind::kPoolSegment && region->pool->owns(address)) {
    complete_device(region->pool->device());
    region->pool->free(address);
    return kSuccess;
  }
  if (region && region->kind == RegionKind::kMalloc && region->base == address) {
    // cudaFree waits for the device.
    complete_device(*sim().devices[static_cast<std::size_t>(region->device)]);
    note_work(Work::free_segment, 1, region->mappings.begin()->second.size);
    unmap_extent(*region, region->mappings.begin());
    addresses.destroy(*region);
    return kSuccess;
  }
  if (const HostBlock* block = sim().host_memory.covering(address);
      block && block->kind == HostKind::kManaged && block->base == address) {
    return sim().host_memory.release(HostKind::kManaged, address);
  }
  report_bad_free(address, addresses.was_freed(address) || sim().host_memory.was_freed(address), caller);
  return kInvalidValue;
}

Error host_malloc(std::uint64_t size, unsigned flags, void** pointer) {
  *pointer = nullptr;
  if (const Error error = check_unsafe_call(); error != kSuccess) return error;
  use_context();
  if (size == 0) return kSuccess;
  *pointer = sim().host_memory.allocate(HostKind::kPinned, size, flags, thread_state().device);
  return *pointer ? kSuccess : kOutOfMemory;
}

Error host_free(const void* pointer, const char* caller) {
  if (!pointer) return kSuccess;
  if (const Error error = check_unsafe_call(); error != kSuccess) return error;
  const auto base = reinterpret_cast<std::uint64_t>(pointer);
  const Error error = sim().host_memory.release(HostKind::kPinned, base);
  if (error != kSuccess) report_bad_free(base, sim().host_memory.was_freed(base), caller);
  return error;
}

Error host_register(const void* pointer, std::uint64_t size, unsigned flags) {
  if (const Error error = check_unsafe_call(); error != kSuccess) return error;
  use_context();
  return sim().host_memory.enlist(reinterpret_cast<std::uint64_t>(pointer), size, flags, thread_state().device);
}

Error host_unregister(const void* pointer, const char* caller) {
  if (const Error error = check_unsafe_call(); error != kSuccess) return error;
  const Error error = sim().host_memory.release(HostKind::kRegistered, reinterpret_cast<std::uint64_t>(pointer));
  if (error != kSuccess) violation("unregister_unknown", "%s: %p is not registered", caller, pointer);
  return error;
}

Error managed_malloc(std::uint64_t size, void** pointer) {
  *pointer = nullptr;
  if (const Error error = check_unsafe_call(); error != kSuccess) return error;
  use_context();
  if (size == 0) return kInvalidValue;
  *pointer = sim().host_memory.allocate(HostKind::kManaged, size, 0, thread_state().device);
  return *pointer ? kSuccess : kOutOfMemory;
}

Error malloc_async(std::uint64_t size, Pool& pool, Stream& stream, std::uint64_t* address) {
  *address = 0;
  if (const Error error = check_capture_for_work(stream); error != kSuccess) return error;
  use_context();
  if (size == 0) return kSuccess;
  if (size > pool.device().capacity) return kOutOfMemory;
  *address = pool.allocate(size);
  if (*address == 0) return kOutOfMemory;
  if (stream.capture) {
    capture_node(stream, abi::kNodeMemAlloc);
    sim().graphs.find(stream.capture->graph)->memory->blocks.emplace(*address, pool.handle());
    Device& device = pool.device();
    device.graph_memory_used += size;
    device.graph_memory_high = std::max(device.graph_memory_high, device.graph_memory_used);
    return kSuccess;
  }
  run_work(stream, abi::kNodeMemAlloc, {});
  return kSuccess;
}

Error free_async(std::uint64_t address, Stream& stream, const char* caller) {
  if (const Error error = check_capture_for_work(stream); error != kSuccess) return error;
  if (address == 0) return kSuccess;
  Region* region = sim().addresses.covering(address);
  const bool in_pool = region && region->kind == RegionKind::kPoolSegment;
  if (!in_pool || !region->pool->owns(address)) {
    report_bad_free(address, in_pool || sim().addresses.was_freed(address), caller);
    return kInvalidValue;
  }
  if (stream.capture) {
    GraphNode& node = capture_node(stream, abi::kNodeMemFree);
    // The graph's own memory lives as long as the graph; other memory is freed by the launch.
    if (!sim().graphs.find(stream.capture->graph)->memory->blocks.contains(address)) {
      node.action = [address, caller] {
        Region* segment = sim().addresses.covering(address);
        if (segment && segment->pool && segment->pool->owns(address)) {
          segment->pool->free(address);
        } else {
          report_bad_free(address, true, caller);
        }
      };
    }
    return kSuccess;
  }
  run_work(stream, abi::kNodeMemFree, {});
  region->pool->free(address);
  return kSuccess;
}

PointerInfo find_pointer(std::uint64_t address) {
  PointerInfo info;
  if (sim().addresses.contains(address)) {
    Region* region = sim().addresses.covering(address);
    if (!region) return info;
    info.region = region;
    info.base = region->base;
    info.size = region->requested;
    if (region->kind == RegionKind::kReservation) {
      auto mapping = region->mappings.upper_bound(address);
      if (mapping == region->mappings.begin()) return info;
      --mapping;
      if (address - mapping->first >= mapping->second.size) return info;
      info.base = mapping->first;
      info.size = mapping->second.size;
      info.device = mapping->second.extent->device->index;
    } else {
      info.device = region->device;
      if (region->pool) {
        info.base = region->pool->start_of(address);
        if (info.base == 0) return {};
        info.size = region->pool->size_of(info.base);
      }
    }
    info.type = abi::kMemoryDevice;
    return info;
  }
  if (HostBlock* block = sim().host_memory.covering(address)) {
    info.host = block;
    info.type = block->kind == HostKind::kManaged ? abi::kMemoryManaged : abi::kMemoryHost;
    info.device = block->device;
    info.base = block->base;
    info.size = block->size;
  }
  return info;
}

Error pointer_attribute(std::uint64_t address, int attribute, void* value) {
  const PointerInfo info = find_pointer(address);
  if (attribute == abi::kPointerRangeStart || attribute == abi::kPointerRangeSize) {
    // A reserved range answers these too.
    if (!info.region && !info.host) return kInvalidValue;
  } else if (info.type == abi::kMemoryUnregistered && attribute != abi::kPointerMapped) {
    return kInvalidValue;
  }
  const auto put = [&](auto result) {
    *static_cast<decltype(result)*>(value) = result;
    return kSuccess;
  };
  const bool plain =
      info.region && (info.region->kind == RegionKind::kMalloc || info.region->kind == RegionKind::kImport);
  switch (attribute) {
    case abi::kPointerContext:
      return put(context_of(std::max(info.device, 0)));
    case abi::kPointerMemoryType:
      return put(static_cast<unsigned>(info.type == abi::kMemoryHost ? 1 : 2));
    case abi::kPointerDevicePointer:
      return put(address);
    case abi::kPointerHostPointer:
      if (!info.host) return kInvalidValue;
      return put(reinterpret_cast<void*>(address));
    case abi::kPointerSyncMemops:
      return put(0u);
    case abi::kPointerBufferId:
      return put(info.region && !info.region->mappings.empty() ? info.region->mappings.begin()->second.extent->id
                                                               : static_cast<std::uint64_t>(info.base));
    case abi::kPointerIsManaged:
      return put(static_cast<unsigned>(info.type == abi::kMemoryManaged));
    case abi::kPointerDeviceOrdinal:
      return put(info.device);
    case abi::kPointerIsLegacyIpcCapable:
      return put(static_cast<unsigned char>(plain));
    case abi::kPointerRangeStart:
      return put(info.region && info.region->kind == RegionKind::kReservation ? info.region->base : info.base);
    case abi::kPointerRangeSize:
      return put(info.region && info.region->kind == RegionKind::kReservation ? info.region->size : info.size);
    case abi::kPointerMapped:
      return put(static_cast<unsigned char>(info.type != abi::kMemoryUnregistered));
    case abi::kPointerAllowedHandleTypes: {
      const auto place = sim().addresses.place_of(address);
      return put(static_cast<std::uint64_t>(place.mapping ? place.mapping->extent->handle_types : 0));
    }
    case abi::kPointerAccessFlags:
      return put(abi::kAccessReadWrite);
    case abi::kPointerMempoolHandle: {
      std::uint64_t handle = 0;
      if (info.region && info.region->pool) handle = info.region->pool->handle();
      return put(handle);
    }
    default:
      return kNotSupported;
  }
}

}  // namespace poolalloc::simgpu
