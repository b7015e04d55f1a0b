// Memory and events of other processes. A handle says whose memory it is, how large, and where its contents are
// (shared_contents.h); opening it gives an address of that size.
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "simgpu/cuda_abi.h"
#include "simgpu/memory.h"
#include "simgpu/report.h"
#include "simgpu/shared_contents.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace {

constexpr std::uint64_t kMagic = 0x706f6f6c616c6c6f;

struct MemoryHandle {
  std::uint64_t magic;
  std::int64_t pid;
  std::uint64_t base;
  std::uint64_t size;
  std::uint64_t extent;
  int device;
  int file;
  std::uint64_t position;
};
static_assert(sizeof(MemoryHandle) <= sizeof(abi::IpcHandle));

// The imported region that a handle was opened as before, or null.
std::map<std::pair<std::int64_t, std::uint64_t>, std::uint64_t>& opened() {
  static auto* const made = new std::map<std::pair<std::int64_t, std::uint64_t>, std::uint64_t>;
  return *made;
}

Error get_handle(abi::IpcHandle* out, std::uint64_t address, const char* caller) {
  const Lock lock = lock_sim();
  const PointerInfo info = find_pointer(address);
  if (!out || !info.region || info.region->kind != RegionKind::kMalloc) {
    violation("ipc_unknown", "%s: 0x%llx is not memory of cudaMalloc", caller,
              static_cast<unsigned long long>(address));
    return kInvalidValue;
  }
  Extent& extent = *info.region->mappings.begin()->second.extent;
  if (!share_contents(extent)) return kOperatingSystem;
  const MemoryHandle handle{kMagic,    getpid(),    info.base,     info.size,
                            extent.id, info.device, shared_file(), extent.shared_position};
  *out = {};
  std::memcpy(out, &handle, sizeof handle);
  return kSuccess;
}

Error open_handle(void** pointer, const abi::IpcHandle& opaque) {
  MemoryHandle handle;
  std::memcpy(&handle, &opaque, sizeof handle);
  if (!pointer || handle.magic != kMagic || !device_exists(handle.device)) return kInvalidValue;
  // CUDA refuses to open a handle in the process that made it.
  if (handle.pid == getpid()) return kInvalidContext;
  const Lock lock = lock_sim();
  use_context();
  std::uint64_t& base = opened()[{handle.pid, handle.extent}];
  if (base != 0) {
    ++sim().addresses.at(base)->opens;
  } else {
    Extent* extent = open_shared(handle.pid, handle.file, handle.position);
    if (!extent) return kInvalidValue;  // its process is gone
    Region* region = sim().addresses.create(RegionKind::kImport, handle.size, kGranularity, handle.device);
    if (!region) {
      release_extent(*extent);
      return kOutOfMemory;
    }
    Mapping& mapping = map_extent(*region, region->base, *extent, extent->size, 0);
    release_extent(*extent);
    std::fill(mapping.access.begin(), mapping.access.end(), std::uint8_t{abi::kAccessReadWrite});
    base = region->base;
  }
  *pointer = reinterpret_cast<void*>(base);
  return kSuccess;
}

Error close_handle(std::uint64_t address, const char* caller) {
  const Lock lock = lock_sim();
  Region* region = sim().addresses.at(address);
  if (!region || region->kind != RegionKind::kImport) {
    violation("ipc_unknown", "%s: 0x%llx is not an open handle", caller, static_cast<unsigned long long>(address));
    return kInvalidValue;
  }
  if (--region->opens > 0) return kSuccess;
  std::erase_if(opened(), [&](const auto& entry) { return entry.second == address; });
  unmap_extent(*region, region->mappings.begin());
  sim().addresses.destroy(*region);
  return kSuccess;
}

Error get_event_handle(abi::IpcHandle* out, void* event, const char* caller) {
  const Lock lock = lock_sim();
  const Event* found = resolve_event(event, caller);
  if (!found) return kInvalidHandle;
  if (!out || (found->flags & abi::kEventInterprocess) == 0) return kInvalidHandle;
  MemoryHandle handle{kMagic, getpid(), found->handle, 0, 0, found->device->index, -1, 0};
  *out = {};
  std::memcpy(out, &handle, sizeof handle);
  return kSuccess;
}

// An event of another process has completed: nothing ties the two processes' work.
Error open_event_handle(void** event, const abi::IpcHandle& opaque) {
  MemoryHandle handle;
  std::memcpy(&handle, &opaque, sizeof handle);
  if (!event || handle.magic != kMagic || !device_exists(handle.device)) return kInvalidValue;
  const Lock lock = lock_sim();
  use_context();
  constexpr unsigned kFlags = abi::kEventInterprocess | abi::kEventDisableTiming;
  *event = reinterpret_cast<void*>(create_event(current_device(), kFlags)->handle);
  return kSuccess;
}

}  // namespace

SIMGPU_API int cudaIpcGetMemHandle(abi::IpcHandle* handle, void* pointer) {
  SIM_COUNT_CALL();
  return runtime_call(
      [&] { return get_handle(handle, reinterpret_cast<std::uint64_t>(pointer), "cudaIpcGetMemHandle"); });
}

SIMGPU_API int cudaIpcOpenMemHandle(void** pointer, abi::IpcHandle handle, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return open_handle(pointer, handle); });
}

SIMGPU_API int cudaIpcCloseMemHandle(void* pointer) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return close_handle(reinterpret_cast<std::uint64_t>(pointer), "cudaIpcCloseMemHandle"); });
}

SIMGPU_API int cudaIpcGetEventHandle(abi::IpcHandle* handle, void* event) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return get_event_handle(handle, event, "cudaIpcGetEventHandle"); });
}

SIMGPU_API int cudaIpcOpenEventHandle(void** event, abi::IpcHandle handle) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return open_event_handle(event, handle); });
}

SIMGPU_API int cuIpcGetMemHandle(abi::IpcHandle* handle, abi::DevicePointer pointer) {
  SIM_COUNT_CALL();
  return context_call([&] { return get_handle(handle, pointer, "cuIpcGetMemHandle"); });
}

SIMGPU_API int cuIpcOpenMemHandle_v2(abi::DevicePointer* pointer, abi::IpcHandle handle, unsigned) {
  SIM_COUNT_CALL();
  return context_call([&] { return open_handle(reinterpret_cast<void**>(pointer), handle); });
}

SIMGPU_API int cuIpcCloseMemHandle(abi::DevicePointer pointer) {
  SIM_COUNT_CALL();
  return context_call([&] { return close_handle(pointer, "cuIpcCloseMemHandle"); });
}

SIMGPU_API int cuIpcGetEventHandle(abi::IpcHandle* handle, void* event) {
  SIM_COUNT_CALL();
  return context_call([&] { return get_event_handle(handle, event, "cuIpcGetEventHandle"); });
}

SIMGPU_API int cuIpcOpenEventHandle(void** event, abi::IpcHandle handle) {
  SIM_COUNT_CALL();
  return context_call([&] { return open_event_handle(event, handle); });
}
