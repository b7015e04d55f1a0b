// Memory between devices and between processes.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

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

// Between processes. torch counts who uses a tensor that was sent, and keeps the block until nobody does.
c10::cuda::CUDACachingAllocator::ShareableHandle TorchAllocator::shareIpcHandle(void* memory) {
  return as_torch_errors([&] {
    IpcName name = ipc_share(address_of(memory));
    return c10::cuda::CUDACachingAllocator::ShareableHandle{static_cast<ptrdiff_t>(name.offset), std::move(name.text)};
  });
}

std::shared_ptr<void> TorchAllocator::getIpcDevPtr(std::string handle) {
  DeviceIndex device = -1;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  return as_torch_errors([&] { return ipc_open(handle, device); });
}

}  // namespace poolalloc::bridge
