// Calls the C++ interface of torch's CUDA allocator as libraries do, whichever allocator is in use: one probe for each
// method. Compiled by the tests against the torch under test.
//
// probe("method") is an empty text if the method did what it promises, "raises: ..." if it threw, "wrong: ..." if it
// had no or another effect, "absent" if this torch does not have it.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" int PyGILState_Ensure();
extern "C" void PyGILState_Release(int);

namespace c10 {
// Says that it freed something, so many times, and has not: then memory runs out all the same, and once.
static int promises = 0;
struct Promising final : FreeMemoryCallback {
  bool Execute() override { return promises-- > 0; }
};
REGISTER_FREE_MEMORY_CALLBACK("promising", Promising)
}  // namespace c10

namespace {

using c10::CachingDeviceAllocator::TraceEntry;
using c10::cuda::CUDACachingAllocator::CUDAAllocator;
constexpr std::size_t kMiB = std::size_t{1} << 20;

struct Wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Absent {};
#define EXPECT(condition) ((condition) ? void() : throw Wrong(#condition))

CUDAAllocator& allocator() { return *c10::cuda::CUDACachingAllocator::get(); }

struct Block {
  explicit Block(std::size_t bytes) : memory(allocator().raw_alloc(bytes)) {}
  ~Block() { allocator().raw_delete(memory); }
  Block(const Block&) = delete;
  void* memory;
};

std::int64_t allocated_bytes() { return allocator().getDeviceStats(0).allocated_bytes[0].current; }

bool fits(std::size_t bytes) {
  try {
    allocator().raw_delete(allocator().raw_alloc(bytes));
    return true;
  } catch (const c10::OutOfMemoryError&) {
    return false;
  }
}

// --- those who listen --------------------------------------------------------------------------------------------

std::mutex entries_mutex;
std::vector<TraceEntry> entries;
bool tracker_allocates = false;

// As a tracker of NCCL does, but bolder: takes the interpreter's lock and memory, which hangs if any lock is held.
void track(const TraceEntry& entry) {
  {
    const std::lock_guard guard(entries_mutex);
    entries.push_back(entry);
  }
  if (!tracker_allocates || entry.action_ != TraceEntry::SEGMENT_MAP) return;
  tracker_allocates = false;
  const int state = PyGILState_Ensure();
  allocator().raw_delete(allocator().raw_alloc(5 * kMiB));
  PyGILState_Release(state);
}

int out_of_memory_seen = 0;

// --- methods of some versions only -------------------------------------------------------------------------------

template <typename A>
void probe_context_for_pointer(A& a) {
  if constexpr (requires { a.getContextForPointer(nullptr); }) {
    EXPECT(a.getContextForPointer(nullptr) == nullptr);
    a.recordHistory(true, [] { return std::make_shared<c10::GatheredContext>(); }, 10,
                    c10::CachingDeviceAllocator::RecordContext::ALL, false, {});
    {
      Block block(kMiB);
      EXPECT(a.getContextForPointer(block.memory) != nullptr);
      EXPECT(a.getContextForPointer(static_cast<char*>(block.memory) + 512) == nullptr);
    }
    a.recordHistory(false, nullptr, 1, c10::CachingDeviceAllocator::RecordContext::NEVER, false, {});
  } else {
    throw Absent();
  }
}

template <typename A>
void probe_supports_metadata(A& a) {
  if constexpr (requires { a.supportsUserMetadata(); })
    EXPECT(a.supportsUserMetadata());
  else
    throw Absent();
}

// The last entry of a history of what `work` does.
template <typename Work>
TraceEntry last_entry(Work work) {
  allocator().recordHistory(true, nullptr, 10, c10::CachingDeviceAllocator::RecordContext::NEVER, true, {});
  work();
  const auto snapshot = allocator().snapshot({0, 0}, true);
  allocator().recordHistory(false, nullptr, 1, c10::CachingDeviceAllocator::RecordContext::NEVER, false, {});
  EXPECT(!snapshot.device_traces.empty() && !snapshot.device_traces[0].empty());
  return snapshot.device_traces[0].back();
}

template <typename A>
void probe_annotate(A& a) {
  if constexpr (requires { a.annotateMemory(nullptr, ""); }) {
    Block block(kMiB);
    const TraceEntry entry = last_entry([&] { a.annotateMemory(block.memory, "a text"); });
    EXPECT(entry.user_metadata_ == "a text" && entry.addr_ == reinterpret_cast<std::size_t>(block.memory));
  } else {
    throw Absent();
  }
}

template <typename A>
void probe_capture_marks(A& a) {
  if constexpr (requires { a.markCaptureBegin(0); }) {
    a.markCaptureBegin(0);
    Block block(kMiB);
    a.markCaptureEnd(0);
    EXPECT(block.memory != nullptr);
  } else {
    throw Absent();
  }
}

template <typename A>
void probe_rejection_observer(A& a) {
  if constexpr (requires { a.attachOomRejectionObserver(nullptr); })
    a.attachOomRejectionObserver([](std::int64_t, std::size_t, std::size_t, std::size_t) {});
  else
    throw Absent();
}

template <typename A>
void probe_allocate_with_address(A& a) {
  if constexpr (requires { a.allocateWithAddress(0, nullptr); }) {
    void* address = a.raw_alloc(4 * kMiB);
    a.raw_delete(address);
    EXPECT(a.allocateWithAddress(4 * kMiB, address).get() == address);
  } else {
    throw Absent();
  }
}

// --- the probes --------------------------------------------------------------------------------------------------

const std::map<std::string, std::function<void(CUDAAllocator&)>> probes = {
    {"allocate",
     [](CUDAAllocator& a) {
       const std::int64_t before = allocated_bytes();
       {
         const c10::DataPtr memory = a.allocate(kMiB);
         EXPECT(memory.get() != nullptr && memory.device() == c10::Device(c10::kCUDA, 0));
         EXPECT(memory.get_context() == memory.get() && allocated_bytes() - before == kMiB);
         EXPECT(a.allocate(0).get() == nullptr);
       }
       EXPECT(allocated_bytes() == before);
     }},
    {"is_simple_data_ptr", [](CUDAAllocator& a) { EXPECT(a.is_simple_data_ptr(a.allocate(kMiB))); }},
    {"raw_deleter",
     [](CUDAAllocator& a) {
       const c10::DataPtr memory = a.allocate(kMiB);
       EXPECT(a.raw_deleter() != nullptr && memory.get_deleter() == a.raw_deleter());
     }},
    {"copy_data",
     [](CUDAAllocator& a) {
       Block from(4096), to(4096);
       std::vector<char> sent(4096, 'x'), back(4096);
       EXPECT(cudaMemcpy(from.memory, sent.data(), 4096, cudaMemcpyHostToDevice) == cudaSuccess);
       a.copy_data(to.memory, from.memory, 4096);
       EXPECT(cudaMemcpy(back.data(), to.memory, 4096, cudaMemcpyDeviceToHost) == cudaSuccess && sent == back);
     }},
    {"raw_alloc",
     [](CUDAAllocator& a) {
       const std::int64_t before = allocated_bytes();
       void* memory = a.raw_alloc(kMiB);
       EXPECT(memory != nullptr && allocated_bytes() - before == kMiB && a.raw_alloc(0) == nullptr);
       a.raw_delete(memory);
     }},
    {"raw_alloc_with_stream",
     [](CUDAAllocator& a) {
       const cudaStream_t stream = c10::cuda::getStreamFromPool(false, 0).stream();
       void* memory = a.raw_alloc_with_stream(kMiB, stream);
       bool found = false;
       for (const auto& segment : a.snapshot({0, 0}, false).segments) {
         const auto at = reinterpret_cast<std::size_t>(memory);
         found |= segment.stream == stream && at >= segment.address && at < segment.address + segment.total_size;
       }
       a.raw_delete(memory);
       EXPECT(found);
     }},
    {"raw_delete",
     [](CUDAAllocator& a) {
       const std::int64_t before = allocated_bytes();
       a.raw_delete(a.raw_alloc(kMiB));
       a.raw_delete(nullptr);
       EXPECT(allocated_bytes() == before);
     }},
    {"init",
     [](CUDAAllocator& a) {
       a.init(c10::cuda::device_count());
       for (c10::DeviceIndex device = 0; device < c10::cuda::device_count(); ++device) {
         const c10::cuda::CUDAGuard guard(device);
         Block block(kMiB);
         cudaPointerAttributes about{};
         EXPECT(block.memory != nullptr && cudaPointerGetAttributes(&about, block.memory) == cudaSuccess);
         EXPECT(about.device == device);
       }
     }},
    {"initialized", [](CUDAAllocator& a) { EXPECT(a.initialized()); }},
    {"getMemoryFraction",
     [](CUDAAllocator& a) {
       a.setMemoryFraction(0.5, 0);
       const double fraction = a.getMemoryFraction(0);
       a.setMemoryFraction(1.0, 0);
       EXPECT(fraction == 0.5);
     }},
    {"setMemoryFraction",
     [](CUDAAllocator& a) {
       a.setMemoryFraction(0.01, 0);
       bool refused = false;
       try {
         a.raw_delete(a.raw_alloc(200 * kMiB));
       } catch (const c10::OutOfMemoryError&) {
         refused = true;
       }
       a.setMemoryFraction(1.0, 0);
       EXPECT(refused);
     }},
    {"getExpandableSegmentSizes",
     [](CUDAAllocator& a) {
       Block block(30 * kMiB);
       std::size_t expandable = 0, told = 0;
       for (const auto& segment : a.snapshot({0, 0}, false).segments)
         if (segment.is_expandable) expandable += segment.total_size;
       for (const auto& size : a.getExpandableSegmentSizes(0)) told += size.total_size;
       EXPECT(told == expandable);
     }},
    {"isEnabled", [](CUDAAllocator& a) { EXPECT(a.isEnabled()); }},
    {"enable",
     [](CUDAAllocator& a) {
       a.enable(false);
       const bool off = !a.isEnabled();
       a.enable(true);
       EXPECT(off && a.isEnabled());
     }},
    {"cacheInfo",
     [](CUDAAllocator& a) {
       std::size_t largest = 0;
       a.cacheInfo(0, &largest);
       EXPECT(largest > 100 * kMiB);
     }},
    {"getBaseAllocation",
     [](CUDAAllocator& a) {
       Block block(8 * kMiB);
       std::size_t bytes = 0;
       void* base = a.getBaseAllocation(block.memory, &bytes);
       EXPECT(base != nullptr && base <= block.memory && bytes >= 8 * kMiB);
     }},
    {"recordStream",
     [](CUDAAllocator& a) {
       const std::int64_t before = a.getDeviceStats(0).active_bytes[0].current;
       {
         const c10::DataPtr memory = a.allocate(kMiB);
         a.recordStream(memory, c10::cuda::getStreamFromPool(false, 0));
       }
       EXPECT(a.getDeviceStats(0).active_bytes[0].current - before == kMiB);
       c10::cuda::device_synchronize();
       a.emptyCache();
       EXPECT(a.getDeviceStats(0).active_bytes[0].current == before);
     }},
    {"emptyCache",
     [](CUDAAllocator& a) {
       {
         Block block(64 * kMiB);
       }
       a.emptyCache();
       EXPECT(a.getDeviceStats(0).reserved_bytes[0].current < static_cast<std::int64_t>(64 * kMiB));
     }},
    {"getDeviceStats",
     [](CUDAAllocator& a) {
       const std::int64_t before = a.getDeviceStats(0).allocation[0].current;
       Block block(kMiB);
       EXPECT(a.getDeviceStats(0).allocation[0].current - before == 1);
     }},
    {"resetAccumulatedStats",
     [](CUDAAllocator& a) {
       {
         Block block(kMiB);
       }
       a.resetAccumulatedStats(0);
       EXPECT(a.getDeviceStats(0).allocation[0].allocated == 0);
     }},
    {"resetPeakStats",
     [](CUDAAllocator& a) {
       {
         Block block(64 * kMiB);
       }
       a.resetPeakStats(0);
       EXPECT(a.getDeviceStats(0).allocated_bytes[0].peak == allocated_bytes());
     }},
    {"getMemoryInfo",
     [](CUDAAllocator& a) {
       const auto [free_bytes, total_bytes] = a.getMemoryInfo(0);
       EXPECT(free_bytes > 0 && free_bytes <= total_bytes);
     }},
    {"snapshot",
     [](CUDAAllocator& a) {
       Block block(kMiB);
       std::size_t sum = 0;
       for (const auto& segment : a.snapshot({0, 0}, false).segments) sum += segment.allocated_size;
       EXPECT(static_cast<std::int64_t>(sum) == allocated_bytes());
     }},
    {"beginAllocateToPool",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{77, 0};
       a.beginAllocateToPool(0, pool, [](cudaStream_t) { return true; });
       void* memory = a.raw_alloc(kMiB);
       a.endAllocateToPool(0, pool);
       std::size_t inside = 0;
       for (const auto& segment : a.snapshot(pool, false).segments) inside += segment.allocated_size;
       a.raw_delete(memory);
       a.releasePool(0, pool);
       EXPECT(inside == kMiB);
     }},
    {"endAllocateToPool",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{78, 0};
       a.beginAllocateToPool(0, pool, [](cudaStream_t) { return true; });
       a.endAllocateToPool(0, pool);
       Block block(kMiB);
       std::size_t inside = 0;
       for (const auto& segment : a.snapshot(pool, false).segments) inside += segment.allocated_size;
       a.releasePool(0, pool);
       EXPECT(inside == 0);
     }},
    {"releasePool",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{79, 0};
       const std::int64_t before = a.getDeviceStats(0).reserved_bytes[0].current;
       a.beginAllocateToPool(0, pool, [](cudaStream_t) { return true; });
       a.raw_delete(a.raw_alloc(64 * kMiB));
       a.endAllocateToPool(0, pool);
       a.createOrIncrefPool(0, pool);
       const int users = a.getPoolUseCount(0, pool);
       a.releasePool(0, pool);
       EXPECT(users == 2 && a.getPoolUseCount(0, pool) == 1);
       a.releasePool(0, pool);
       a.emptyCache();
       EXPECT(a.getDeviceStats(0).reserved_bytes[0].current <= before);
     }},
    {"markCaptureBegin", [](CUDAAllocator& a) { probe_capture_marks(a); }},
    {"markCaptureEnd", [](CUDAAllocator& a) { probe_capture_marks(a); }},
    {"getPoolUseCount",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{80, 0};
       a.createOrIncrefPool(0, pool);
       a.createOrIncrefPool(0, pool);
       const int users = a.getPoolUseCount(0, pool);
       a.releasePool(0, pool);
       a.releasePool(0, pool);
       EXPECT(users == 2);
     }},
    {"createOrIncrefPool",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{81, 0};
       a.createOrIncrefPool(0, pool);
       EXPECT(a.getPoolUseCount(0, pool) == 1);
       a.releasePool(0, pool);
     }},
    {"setUseOnOOM",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{82, 0};
       a.emptyCache();
       a.beginAllocateToPool(0, pool, [](cudaStream_t) { return true; });
       const auto stream = c10::cuda::getStreamFromPool(false, 0);
       const c10::cuda::CUDAStreamGuard on_it(stream);  // torch lends to the pool's own stream alone
       cudaGraph_t graph = nullptr;
       cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
       void* const memory = a.raw_alloc(256 * kMiB);
       cudaStreamEndCapture(stream, &graph);
       cudaGraphDestroy(graph);
       a.raw_delete(memory);  // the pool keeps it, for the graph
       a.endAllocateToPool(0, pool);
       const auto total = static_cast<double>(a.getMemoryInfo(0).second);
       const auto held = static_cast<double>(a.getDeviceStats(0).reserved_bytes[0].current);
       a.setMemoryFraction((held + 32.0 * kMiB) / total, 0);
       const bool before = fits(200 * kMiB);
       a.setUseOnOOM(0, pool, true);
       const bool after = fits(200 * kMiB);
       a.setMemoryFraction(1.0, 0);
       a.releasePool(0, pool);
       EXPECT(!before && after);
     }},
    {"setNoSplit",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{83, 0};
       a.createOrIncrefPool(0, pool);
       a.setNoSplit(0, pool);
       a.beginAllocateToPool(0, pool, [](cudaStream_t) { return true; });
       auto* first = static_cast<char*>(a.raw_alloc(1024));
       auto* second = static_cast<char*>(a.raw_alloc(1024));
       a.endAllocateToPool(0, pool);
       a.raw_delete(first);
       a.raw_delete(second);
       a.releasePool(0, pool);
       a.releasePool(0, pool);
       EXPECT(std::abs(second - first) >= std::ptrdiff_t{2 * kMiB});
     }},
    {"checkPoolLiveAllocations",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{84, 0};
       a.beginAllocateToPool(0, pool, [](cudaStream_t) { return true; });
       void* memory = a.raw_alloc(kMiB);
       a.endAllocateToPool(0, pool);
       const bool right = a.checkPoolLiveAllocations(0, pool, {memory});
       const bool wrong = a.checkPoolLiveAllocations(0, pool, {});
       a.raw_delete(memory);
       a.releasePool(0, pool);
       EXPECT(right && !wrong);
     }},
    {"getCheckpointState",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{85, 0};
       a.beginAllocateToPool(0, pool, [](cudaStream_t) { return true; });
       a.endAllocateToPool(0, pool);
       const auto state = a.getCheckpointState(0, pool);
       a.releasePool(0, pool);
       EXPECT(state != nullptr);
     }},
    {"setCheckpointPoolState",
     [](CUDAAllocator& a) {
       const c10::MempoolId_t pool{86, 0};
       a.beginAllocateToPool(0, pool, [](cudaStream_t) { return true; });
       void* kept = a.raw_alloc(3 * kMiB);
       const auto state = a.getCheckpointState(0, pool);
       void* later = a.raw_alloc(5 * kMiB);
       a.endAllocateToPool(0, pool);
       const auto delta = a.setCheckpointPoolState(0, state);
       const bool right = a.checkPoolLiveAllocations(0, pool, {kept});
       EXPECT(right && std::find(delta.ptrs_freed.begin(), delta.ptrs_freed.end(), later) != delta.ptrs_freed.end());
       a.raw_delete(kept);  // the checkpoint's owner of it does not
       for (const auto& memory : delta.dataptrs_allocd) const_cast<c10::DataPtr&>(memory).release_context();
       a.releasePool(0, pool);
     }},
    {"allocateWithAddress", [](CUDAAllocator& a) { probe_allocate_with_address(a); }},
    {"shareIpcHandle",
     [](CUDAAllocator& a) {
       Block block(3 * kMiB);
       EXPECT(!a.shareIpcHandle(block.memory).handle.empty());
     }},
    {"getIpcDevPtr",
     [](CUDAAllocator& a) {
       Block block(3 * kMiB);
       const auto shared = a.shareIpcHandle(block.memory);
       EXPECT(a.getIpcDevPtr(shared.handle) != nullptr);
     }},
    {"isHistoryEnabled",
     [](CUDAAllocator& a) {
       EXPECT(!a.isHistoryEnabled());
       a.recordHistory(true, nullptr, 10, c10::CachingDeviceAllocator::RecordContext::NEVER, true, {});
       const bool enabled = a.isHistoryEnabled();
       a.recordHistory(false, nullptr, 1, c10::CachingDeviceAllocator::RecordContext::NEVER, false, {});
       EXPECT(enabled && !a.isHistoryEnabled());
     }},
    {"getContextForPointer", [](CUDAAllocator& a) { probe_context_for_pointer(a); }},
    {"recordHistory",
     [](CUDAAllocator& a) {
       Block* block = nullptr;
       const TraceEntry entry = last_entry([&] {
         EXPECT(allocator().isHistoryEnabled());
         block = new Block(3 * kMiB);
       });
       delete block;
       EXPECT(entry.action_ == TraceEntry::ALLOC && entry.size_ == 3 * kMiB && !a.isHistoryEnabled());
     }},
    {"recordAnnotation",
     [](CUDAAllocator& a) {
       a.recordHistory(true, nullptr, 10, c10::CachingDeviceAllocator::RecordContext::NEVER, true, {});
       a.recordAnnotation({{"name", "a step"}, {"stage", "START"}});
       const auto snapshot = a.snapshot({0, 0}, true);
       a.recordHistory(false, nullptr, 1, c10::CachingDeviceAllocator::RecordContext::NEVER, false, {});
       EXPECT(snapshot.external_annotations.size() == 1);
       EXPECT(snapshot.external_annotations[0].metadata_.at("name") == "a step");
     }},
    {"pushCompileContext",
     [](CUDAAllocator& a) {
       std::string name = "a region";
       const TraceEntry entry = last_entry([&] {
         a.pushCompileContext(name);
         a.raw_delete(a.raw_alloc(kMiB));
         a.popCompileContext();
       });
       EXPECT(entry.compile_context_ == "a region");
     }},
    {"popCompileContext",
     [](CUDAAllocator& a) {
       std::string name = "a region";
       const TraceEntry entry = last_entry([&] {
         a.pushCompileContext(name);
         a.popCompileContext();
         a.raw_delete(a.raw_alloc(kMiB));
       });
       EXPECT(entry.compile_context_ == "N/A");
     }},
    {"supportsUserMetadata", [](CUDAAllocator& a) { probe_supports_metadata(a); }},
    {"setUserMetadata",
     [](CUDAAllocator& a) {
       const TraceEntry entry = last_entry([&] {
         a.setUserMetadata("a text");
         a.raw_delete(a.raw_alloc(kMiB));
         a.setUserMetadata("");
       });
       EXPECT(entry.user_metadata_ == "a text");
     }},
    {"getUserMetadata",
     [](CUDAAllocator& a) {
       a.setUserMetadata("a text");
       const std::string text = a.getUserMetadata();
       a.setUserMetadata("");
       EXPECT(text == "a text" && a.getUserMetadata().empty());
     }},
    {"annotateMemory", [](CUDAAllocator& a) { probe_annotate(a); }},
    {"attachOutOfMemoryObserver",
     [](CUDAAllocator& a) {
       const std::int64_t before = a.getDeviceStats(0).num_ooms;
       a.attachOutOfMemoryObserver([](std::int64_t, std::size_t, std::size_t, std::size_t) {
         const int state = PyGILState_Ensure();
         allocator().raw_delete(allocator().raw_alloc(5 * kMiB));  // hangs under a lock
         PyGILState_Release(state);
         ++out_of_memory_seen;
       });
       out_of_memory_seen = 0;
       c10::promises = 1;
       for (int i = 0; i < 2; ++i) {
         try {
           a.raw_alloc(std::size_t{1} << 45);
         } catch (const c10::OutOfMemoryError&) {
         }
       }
       EXPECT(out_of_memory_seen == 2 && a.getDeviceStats(0).num_ooms - before == 2);
     }},
    {"attachOomRejectionObserver", [](CUDAAllocator& a) { probe_rejection_observer(a); }},
    {"attachAllocatorTraceTracker",
     [](CUDAAllocator& a) {
       a.emptyCache();
       a.attachAllocatorTraceTracker(track);
       entries.clear();
       a.raw_delete(a.raw_alloc(300 * kMiB));  // more than may lie ready: memory is made for it, and given back
       a.emptyCache();
       const auto made = std::find_if(entries.begin(), entries.end(), [](const TraceEntry& entry) {
         return entry.action_ == TraceEntry::ALLOC && entry.size_ == 300 * kMiB;
       });
       EXPECT(made - entries.begin() >= 1 && entries.end() - made >= 4 &&
              made[1].action_ == TraceEntry::FREE_REQUESTED && made[2].action_ == TraceEntry::FREE_COMPLETED);
     }},
    {"enablePeerAccess",
     [](CUDAAllocator& a) {
       if (c10::cuda::device_count() < 2) throw Wrong("needs two devices");
       a.enablePeerAccess(1, 0);
       const c10::cuda::CUDAGuard guard(1);
       const cudaError_t again = cudaDeviceEnablePeerAccess(0, 0);
       (void)cudaGetLastError();
       EXPECT(again == cudaErrorPeerAccessAlreadyEnabled);
     }},
    {"memcpyAsync",
     [](CUDAAllocator& a) {
       Block from(4096), to(4096);
       std::vector<char> sent(4096, 'x'), back(4096);
       EXPECT(cudaMemcpy(from.memory, sent.data(), 4096, cudaMemcpyHostToDevice) == cudaSuccess);
       EXPECT(a.memcpyAsync(to.memory, 0, from.memory, 0, 4096, nullptr, false) == cudaSuccess);
       EXPECT(cudaMemcpy(back.data(), to.memory, 4096, cudaMemcpyDeviceToHost) == cudaSuccess && sent == back);
     }},
    {"name", [](CUDAAllocator& a) { EXPECT(!a.name().empty()); }},
};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) const char* probe(const char* method) {
  static thread_local std::string text;
  text.clear();
  try {
    const auto found = probes.find(method);
    if (found == probes.end()) return "unknown";
    found->second(allocator());
  } catch (const Absent&) {
    text = "absent";
  } catch (const Wrong& error) {
    text = std::string("wrong: ") + error.what();
  } catch (const std::exception& error) {
    text = std::string("raises: ") + error.what();
  }
  return text.c_str();
}

// Methods that have a probe, in lines.
__attribute__((visibility("default"))) const char* probe_names() {
  static std::string names = [] {
    std::string lines;
    for (const auto& [name, body] : probes) lines += name + "\n";
    return lines;
  }();
  return names.c_str();
}

// A tracker that allocates, and asks for the interpreter's lock, when the next page is mapped.
__attribute__((visibility("default"))) void track_boldly() {
  allocator().attachAllocatorTraceTracker(track);
  tracker_allocates = true;
}
__attribute__((visibility("default"))) int tracked() {
  const std::lock_guard guard(entries_mutex);
  return static_cast<int>(entries.size());
}
}
