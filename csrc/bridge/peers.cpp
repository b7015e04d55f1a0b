// Memory between devices and between processes.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <string_view>

#include "bridge/torch_allocator.h"
#include "plugin/ipc.h"
#include "plugin/plugin.h"

namespace poolalloc::bridge {

void TorchAllocator::enablePeerAccess(DeviceIndex device, DeviceIndex peer) {
  CUDAPluggableAllocator::enablePeerAccess(device, peer);
  // Memory that is mapped, as poolalloc's is, also wants the access granted page by page.
  plugin_allocator().allow_peer(peer, device);
}

// Where peers have no access to each other, only the peer form can copy mapped memory.
cudaError_t TorchAllocator::memcpyAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                                        cudaStream_t stream, bool peer_access) {
  if (peer_access || to_device == from_device)
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
  return cudaMemcpyPeerAsync(to, to_device, from, from_device, bytes, stream);
}

// --- between processes -------------------------------------------------------------------------------------------
//
// torch counts who uses a tensor that was sent, and keeps the block until nobody does. Pages have names of poolalloc's
// (plugin/ipc.h). Whole allocations have those that CUDA gives them, as with torch's own allocator, which is also how
// they are opened: once a process, and closed with the last holder.
namespace {

constexpr std::string_view kWhole = "pa-all-1";  // of the names of whole allocations

struct Opened {
  std::mutex mutex;
  std::map<std::pair<DeviceIndex, std::string>, std::weak_ptr<void>> memory;
};
Opened& opened() {
  static auto* const made = new Opened;
  return *made;
}

std::string name_of_whole(Address start) {
  cudaIpcMemHandle_t handle;
  C10_CUDA_CHECK(cudaIpcGetMemHandle(&handle, reinterpret_cast<void*>(start)));
  return std::string(kWhole) + std::string(handle.reserved, sizeof handle.reserved);
}

std::shared_ptr<void> open_whole(const std::string& name, DeviceIndex device) {
  cudaIpcMemHandle_t handle;
  TORCH_CHECK(name.size() == kWhole.size() + sizeof handle.reserved, "poolalloc: the name of shared memory is broken");
  Opened& all = opened();
  const std::lock_guard guard(all.mutex);
  std::weak_ptr<void>& known = all.memory[{device, name}];
  if (std::shared_ptr<void> memory = known.lock()) return memory;
  std::memcpy(handle.reserved, name.data() + kWhole.size(), sizeof handle.reserved);
  void* start = nullptr;
  C10_CUDA_CHECK(cudaIpcOpenMemHandle(&start, handle, cudaIpcMemLazyEnablePeerAccess));
  std::shared_ptr<void> memory(start, [device, name](void* gone) {
    Opened& rest = opened();
    const std::lock_guard turn(rest.mutex);
    const c10::cuda::CUDAGuard on(device);
    if (cudaIpcCloseMemHandle(gone) != cudaSuccess) static_cast<void>(cudaGetLastError());  // the end of the process
    const auto entry = rest.memory.find({device, name});
    if (entry != rest.memory.end() && entry->second.expired()) rest.memory.erase(entry);
  });
  known = memory;
  return memory;
}

}  // namespace

c10::cuda::CUDACachingAllocator::ShareableHandle TorchAllocator::shareIpcHandle(void* memory) {
  return as_torch_errors([&]() -> c10::cuda::CUDACachingAllocator::ShareableHandle {
    const Address address = address_of(memory);
    if (const Address start = plugin_allocator().whole_allocation(address); start != 0)
      return {static_cast<ptrdiff_t>(address - start), name_of_whole(start)};
    IpcName name = ipc_share(address);
    return {static_cast<ptrdiff_t>(name.offset), std::move(name.text)};
  });
}

std::shared_ptr<void> TorchAllocator::getIpcDevPtr(std::string handle) {
  DeviceIndex device = -1;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  if (handle.starts_with(kWhole)) return open_whole(handle, device);
  return as_torch_errors([&] { return ipc_open(handle, device); });
}

}  // namespace poolalloc::bridge
