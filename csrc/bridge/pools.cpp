// Private pools: torch.cuda.MemPool, CUDA graphs, and what torch.compile asks about a pool's blocks.
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>

#include "bridge/torch_allocator.h"
#include "plugin/plugin.h"

namespace poolalloc::bridge {
namespace {

// What torch.cuda.MemPool(allocator=...) brings.
class PoolsOwn final : public SegmentSource {
 public:
  explicit PoolsOwn(std::shared_ptr<Caching> allocator) : allocator_(std::move(allocator)) {}

  Address allocate(Bytes bytes, poolalloc::DeviceIndex device, StreamId stream) override {
    const c10::cuda::CUDAGuard guard(static_cast<DeviceIndex>(device));
    const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);  // it may call cudaMalloc
    const Asking asking(this);
    if (asking.before == this) refuse();
    void* memory = allocator_->raw_alloc_with_stream(bytes, reinterpret_cast<cudaStream_t>(stream));
    if (memory != nullptr && plugin_allocator().owns(address_of(memory))) {
      allocator_->raw_delete(memory);
      refuse();
    }
    return address_of(memory);
  }

  bool free(Address address, poolalloc::DeviceIndex device) noexcept override {
    try {
      const c10::cuda::CUDAGuard guard(static_cast<DeviceIndex>(device));
      const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
      allocator_->raw_delete(reinterpret_cast<void*>(address));
      return true;
    } catch (const std::exception& error) {
      poolalloc::report_failure("free of a pool's own allocator", error.what());
      return false;
    }
  }

 private:
  // Who is being asked on this thread.
  struct Asking {
    explicit Asking(const PoolsOwn* who) : before(std::exchange(now, who)) {}
    ~Asking() { now = before; }
    Asking(const Asking&) = delete;
    Asking& operator=(const Asking&) = delete;

    static inline thread_local const PoolsOwn* now = nullptr;
    const PoolsOwn* const before;
  };

  [[noreturn]] static void refuse() {
    TORCH_CHECK(false,
                "poolalloc: the allocator of this MemPool takes poolalloc's own memory, or torch's, which is the same. "
                "Leave the argument out: the pool then has that memory anyway.");
  }

  const std::shared_ptr<Caching> allocator_;
};

// Whether torch tells a capture from a pool that requests are merely sent to.
template <typename Allocator>
constexpr bool announces_captures() {
  return requires(Allocator& allocator) { allocator.markCaptureBegin(DeviceIndex{}); };
}

}  // namespace

void TorchAllocator::beginAllocateToPool(DeviceIndex device, MempoolId_t pool,
                                         std::function<bool(cudaStream_t)> filter) {
  as_torch_errors([&] {
    const auto asked = [filter = std::move(filter)](StreamId stream) {
      return filter(reinterpret_cast<cudaStream_t>(stream));
    };
    plugin_allocator().begin_allocate_to_pool(device, id_of(pool), asked, !announces_captures<Caching>());
  });
}

void TorchAllocator::markCaptureBegin(DeviceIndex device) { plugin_allocator().begin_capture(device); }

void TorchAllocator::markCaptureEnd(DeviceIndex device) { plugin_allocator().end_capture(device); }

void TorchAllocator::endAllocateToPool(DeviceIndex device, MempoolId_t pool) {
  as_torch_errors([&] { poolalloc_end_allocate_to_pool(device, pool); });
}

void TorchAllocator::releasePool(DeviceIndex device, MempoolId_t pool) {
  const History::Cause cause(RecordContext::ALL);
  poolalloc_release_pool(device, pool);
}

int TorchAllocator::getPoolUseCount(DeviceIndex device, MempoolId_t pool) {
  return plugin_allocator().pool_users(device, id_of(pool));
}

void TorchAllocator::createOrIncrefPool(DeviceIndex device, MempoolId_t pool, std::shared_ptr<Caching> allocator) {
  std::shared_ptr<SegmentSource> own;
  if (allocator != nullptr && allocator.get() != this) own = std::make_shared<PoolsOwn>(std::move(allocator));
  plugin_allocator().retain_pool(device, id_of(pool), std::move(own));
}

void TorchAllocator::setUseOnOOM(DeviceIndex device, MempoolId_t pool, bool use) {
  plugin_allocator().set_pool_use_on_oom(device, id_of(pool), use);
}

void TorchAllocator::setNoSplit(DeviceIndex device, MempoolId_t pool) {
  as_torch_errors([&] { plugin_allocator().set_pool_no_split(device, id_of(pool)); });
}

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

// torch.compile(mode="reduce-overhead") keeps which blocks of a pool are live when a graph has been recorded, and
// brings the pool back to them before it records another on top of that graph.
namespace {
struct PoolState : c10::cuda::CUDACachingAllocator::AllocatorState {
  explicit PoolState(PoolCheckpoint checkpoint) : checkpoint(std::move(checkpoint)) {}
  PoolCheckpoint checkpoint;
};
}  // namespace

std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> TorchAllocator::getCheckpointState(DeviceIndex device,
                                                                                                    MempoolId_t pool) {
  return std::make_shared<PoolState>(
      as_torch_errors([&] { return plugin_allocator().checkpoint(device, id_of(pool)); }));
}

// Whoever holds a tensor of a block that was freed must not free it again, and a block that is live again needs an
// owner: torch sees to both with what is returned.
c10::cuda::CUDACachingAllocator::CheckpointDelta TorchAllocator::setCheckpointPoolState(
    DeviceIndex device, std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> state) {
  const auto* pool = dynamic_cast<const PoolState*>(state.get());
  TORCH_CHECK(pool != nullptr && pool->checkpoint.device == device,
              "poolalloc: this is no state of a pool that poolalloc made on device ", static_cast<int>(device), ".");
  const History::Cause cause(RecordContext::ALL);
  std::vector<BlockInfo> before;
  if (History::on()) before = plugin_allocator().blocks(device, pool->checkpoint.pool);
  const CheckpointDelta restored = as_torch_errors([&] { return plugin_allocator().restore(pool->checkpoint); });
  if (History::on()) History::instance().restored(before, restored.freed, restored.allocated);
  c10::cuda::CUDACachingAllocator::CheckpointDelta delta;
  for (const Address block : restored.freed) delta.ptrs_freed.push_back(reinterpret_cast<void*>(block));
  for (const Address block : restored.allocated) {
    auto* memory = reinterpret_cast<void*>(block);
    delta.dataptrs_allocd.emplace_back(memory, memory, &release, c10::Device(c10::kCUDA, device));
  }
  return delta;
}

}  // namespace poolalloc::bridge
