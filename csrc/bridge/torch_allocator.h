// poolalloc as torch sees it with nothing missing: a subclass of torch's pluggable allocator that sends memory straight
// to the core and answers every other call. Compiled on the user's machine against the user's torch
// (poolalloc/_internal/bridge.py). Not for policy (core) or device calls (driver): here are only torch's names and
// types for what the core knows.
//
// - Subclass of CUDAPluggableAllocator, not of CUDAAllocator: later versions add pure virtual functions, which it has.
// - Functions that only some versions of torch have are declared without `override`: where torch has the virtual they
//   override it, elsewhere nobody calls them. So one source serves all versions, and no version number is asked for.
// - The object is leaked on purpose: tensors die after static destructors have run.
#pragma once

#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "bridge/history.h"
#include "core/allocator.h"

namespace poolalloc::bridge {

using c10::MempoolId_t;
using Caching = c10::cuda::CUDACachingAllocator::CUDAAllocator;
using OutOfMemoryObserver = c10::cuda::CUDACachingAllocator::OutOfMemoryObserver;
using RejectionObserver = std::function<void(std::int64_t, std::size_t, std::size_t, std::size_t)>;

inline PoolId id_of(MempoolId_t pool) { return {pool.first, pool.second}; }
inline Address address_of(const void* pointer) { return reinterpret_cast<Address>(pointer); }
inline StreamId id_of(cudaStream_t stream) { return reinterpret_cast<StreamId>(stream); }

// torch's own allocator raises RuntimeError for what cannot be done; what core throws would reach Python as ValueError.
template <typename Call>
auto as_torch_errors(Call&& call) {
  try {
    return call();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK(false, "poolalloc: ", error.what());
  }
}

// From now on threads of autograd are in the region of the thread that they work for (regions.cpp).
void follow_regions();

class TorchAllocator final : public torch::cuda::CUDAPluggableAllocator::CUDAPluggableAllocator {
 public:
  TorchAllocator();

  // Memory: torch_allocator.cpp
  c10::DataPtr allocate(std::size_t bytes) override;
  c10::DeleterFnPtr raw_deleter() const override { return caching_ ? &release : &release_uncached; }
  void* raw_alloc(std::size_t bytes) override;
  void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) override;
  void raw_delete(void* memory) override;
  void recordStream(const c10::DataPtr& memory, c10::cuda::CUDAStream stream) override;
  void* getBaseAllocation(void* memory, std::size_t* bytes) override;
  void attachOutOfMemoryObserver(OutOfMemoryObserver observer) override;
  void attachOomRejectionObserver(RejectionObserver) {}  // memory is never refused before it was tried for
  void init(int device_count) override;
  std::string name() override;
  void enable(bool value) override;
  bool isEnabled() const override { return caching_; }
  void emptyCache(MempoolId_t pool = {0, 0}) override;
  double getMemoryFraction(DeviceIndex device) override;
  void setMemoryFraction(double fraction, DeviceIndex device) override;

  // Devices side by side: peers.cpp
  void enablePeerAccess(DeviceIndex device, DeviceIndex peer) override;
  cudaError_t memcpyAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                          cudaStream_t stream, bool peer_access) override;
  std::shared_ptr<void> getIpcDevPtr(std::string handle) override;
  c10::cuda::CUDACachingAllocator::ShareableHandle shareIpcHandle(void* memory) override;

  // Private pools: pools.cpp
  void beginAllocateToPool(DeviceIndex device, MempoolId_t pool, std::function<bool(cudaStream_t)> filter) override;
  void endAllocateToPool(DeviceIndex device, MempoolId_t pool) override;
  void markCaptureBegin(DeviceIndex device);
  void markCaptureEnd(DeviceIndex device);
  void releasePool(DeviceIndex device, MempoolId_t pool) override;
  int getPoolUseCount(DeviceIndex device, MempoolId_t pool) override;
  void createOrIncrefPool(DeviceIndex device, MempoolId_t pool, std::shared_ptr<Caching> allocator) override;
  void setUseOnOOM(DeviceIndex device, MempoolId_t pool, bool use) override;
  void setNoSplit(DeviceIndex device, MempoolId_t pool) override;
  bool checkPoolLiveAllocations(DeviceIndex device, MempoolId_t pool,
                                const std::unordered_set<void*>& expected) override;
  std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> getCheckpointState(DeviceIndex device,
                                                                                      MempoolId_t pool) override;
  c10::cuda::CUDACachingAllocator::CheckpointDelta setCheckpointPoolState(
      DeviceIndex device, std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> state) override;

  // History: recording.cpp; the state at one moment: snapshot.cpp
  bool isHistoryEnabled() override;
  void recordHistory(bool enabled, c10::cuda::CUDACachingAllocator::CreateContextFn recorder, std::size_t max_entries,
                     c10::CachingDeviceAllocator::RecordContext when, bool clear,
                     const std::vector<std::string>& skip_actions) override;
  c10::cuda::CUDACachingAllocator::SnapshotInfo snapshot(MempoolId_t pool, bool include_traces = true) override;
  void attachAllocatorTraceTracker(AllocatorTraceTracker tracker) override;
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& pairs) override;
  void pushCompileContext(std::string& name) override;
  void popCompileContext() override;
  bool supportsUserMetadata() { return true; }
  void setUserMetadata(const std::string& text) override;
  std::string getUserMetadata() override;
  void annotateMemory(const void* memory, const std::string& text);
  std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* memory);

  // Figures: figures.cpp
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex device) override;
  void resetAccumulatedStats(DeviceIndex device) override;
  void resetPeakStats(DeviceIndex device) override;
  void cacheInfo(DeviceIndex device, std::size_t* largest_block) override;
  std::vector<c10::cuda::CUDACachingAllocator::StreamSegmentSize> getExpandableSegmentSizes(
      DeviceIndex device) override;

 private:
  using TorchStats = c10::CachingDeviceAllocator::DeviceStats;

  static void release(void* memory);
  static void release_uncached(void* memory);
  [[gnu::noinline]] void* get_uncached(std::size_t bytes, DeviceIndex device);
  [[gnu::noinline]] c10::DataPtr allocate_uncached(std::size_t bytes, DeviceIndex device);
  DeviceIndex current_device() const;
  void* get(std::size_t bytes, DeviceIndex device, cudaStream_t stream);
  void* get_unrecorded(std::size_t bytes, DeviceIndex device, cudaStream_t stream);
  [[gnu::noinline]] void* get_recorded(std::size_t bytes, DeviceIndex device, cudaStream_t stream);
  [[noreturn]] void raise_out_of_memory(std::size_t bytes, DeviceIndex device, cudaStream_t stream,
                                        const std::string& text);

  int devices_ = 0;                    // visible ones; 0: not known yet
  std::atomic<bool> caching_;          // torch.cuda.caching_allocator_enable, PYTORCH_NO_CUDA_MEMORY_CACHING
  std::atomic<bool> uncached_{false};  // there may be memory straight from CUDA
  std::mutex mutex_;                   // guards what follows; never held while a callback runs
  std::vector<OutOfMemoryObserver> out_of_memory_observers_;
  std::unordered_map<DeviceIndex, TorchStats> accumulated_since_;
};

}  // namespace poolalloc::bridge
