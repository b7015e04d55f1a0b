// Snapshots and history.
#include "bridge/torch_allocator.h"

namespace poolalloc::bridge {

void TorchAllocator::recordHistory(bool enabled, c10::cuda::CUDACachingAllocator::CreateContextFn, std::size_t,
                                   c10::CachingDeviceAllocator::RecordContext, bool, const std::vector<std::string>&) {
  TORCH_CHECK(!enabled, "poolalloc: torch.cuda.memory._record_memory_history is not supported yet.");
}

void TorchAllocator::attachAllocatorTraceTracker(AllocatorTraceTracker) {
  TORCH_CHECK(false,
              "poolalloc: following every allocation from C++ (attachAllocatorTraceTracker) is not supported yet.");
}

c10::cuda::CUDACachingAllocator::SnapshotInfo TorchAllocator::snapshot(MempoolId_t, bool) {
  TORCH_CHECK(false,
              "poolalloc: snapshots of memory are not supported yet; poolalloc.fragmentation() says where every "
              "reserved byte is.");
}

}  // namespace poolalloc::bridge
