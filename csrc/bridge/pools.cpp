// Private pools: torch.cuda.MemPool, CUDA graphs, and what torch.compile asks about a pool's blocks.
#include "bridge/torch_allocator.h"
#include "plugin/plugin.h"

namespace poolalloc::bridge {

void TorchAllocator::beginAllocateToPool(DeviceIndex device, MempoolId_t pool,
                                         std::function<bool(cudaStream_t)> filter) {
  poolalloc_begin_allocate_to_pool(device, pool, std::move(filter));
}

void TorchAllocator::endAllocateToPool(DeviceIndex device, MempoolId_t pool) {
  poolalloc_end_allocate_to_pool(device, pool);
}

void TorchAllocator::releasePool(DeviceIndex device, MempoolId_t pool) { poolalloc_release_pool(device, pool); }

int TorchAllocator::getPoolUseCount(DeviceIndex device, MempoolId_t pool) {
  return plugin_allocator().pool_users(device, id_of(pool));
}

void TorchAllocator::createOrIncrefPool(DeviceIndex device, MempoolId_t pool, std::shared_ptr<Caching> allocator) {
  TORCH_CHECK(
      allocator == nullptr || allocator.get() == this,
      "poolalloc: a MemPool cannot bring an allocator of its own (torch.cuda.MemPool(allocator=...)): poolalloc "
      "takes the memory of every pool from the driver itself. Leave the argument out.");
  plugin_allocator().retain_pool(device, id_of(pool));
}

void TorchAllocator::setUseOnOOM(DeviceIndex device, MempoolId_t pool, bool use) {
  plugin_allocator().set_pool_use_on_oom(device, id_of(pool), use);
}

// Nothing to switch off: a block that is free is never kept apart as a whole, nor does a block's size depend on
// another.
void TorchAllocator::setNoSplit(DeviceIndex, MempoolId_t) {}

bool TorchAllocator::checkPoolLiveAllocations(DeviceIndex device, MempoolId_t pool,
                                              const std::unordered_set<void*>& expected) {
  std::size_t live = 0;
  for (const BlockInfo& block : plugin_allocator().blocks(device, id_of(pool))) {
    if (block.pending) continue;
    if (expected.count(reinterpret_cast<void*>(block.address)) == 0) return false;
    ++live;
  }
  return live == expected.size();
}

// torch.compile(mode="reduce-overhead") saves the layout of a pool and puts it back before it records the next graph.
std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> TorchAllocator::getCheckpointState(DeviceIndex,
                                                                                                    MempoolId_t) {
  TORCH_CHECK(false,
              "poolalloc: the checkpoint of a pool, which torch.compile's CUDA graph trees need, is not supported yet. "
              "Use torch.compile without mode=\"reduce-overhead\".");
}

c10::cuda::CUDACachingAllocator::CheckpointDelta TorchAllocator::setCheckpointPoolState(
    DeviceIndex, std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState>) {
  TORCH_CHECK(false, "poolalloc: no checkpoint of a pool was made, so none can be put back.");
}

}  // namespace poolalloc::bridge
