// The state of memory at one moment, as torch.cuda.memory._snapshot shows it.
//
// A segment is a run of neighbouring pages that hold physical memory, or one allocation of the driver or of a pool's
// own allocator where memory comes in those. A physical page that is mapped at several addresses appears at one of
// them, where a block used it last, so the segments add up to what is reserved. Pages that no stream holds appear as
// one segment at address 0. An inactive block is a hole in pages that blocks use, or a run of whole idle pages, never
// part of each.
#include <c10/cuda/CUDAAllocatorConfig.h>

#include <algorithm>
#include <limits>

#include "bridge/torch_allocator.h"
#include "plugin/plugin.h"

namespace poolalloc::bridge {
namespace {

using c10::CachingDeviceAllocator::SegmentInfo;
using TorchBlock = c10::CachingDeviceAllocator::BlockInfo;
using c10::cuda::CUDACachingAllocator::SnapshotInfo;
using Contexts = std::unordered_map<Address, History::Context>;

// The segments of one heap, from its pages and blocks, both by address.
class Segments {
 public:
  Segments(const HeapLayout& heap, const Contexts& contexts, std::vector<SegmentInfo>& segments)
      : heap_(heap.heap), expandable_(!heap.segmented), contexts_(contexts), segments_(segments) {
    auto block = heap.blocks.begin();
    for (const PageRun& run : heap.pages) {
      if (!continues(run)) begin(run);
      const Address end = run.address + run.bytes;
      for (; block != heap.blocks.end() && block->address < end; ++block) {
        add_hole(block->address);
        add_block(*block);
      }
      add_hole(end);
    }
  }

 private:
  bool continues(const PageRun& run) const {
    return at_ == run.address && at_ != 0 && !run.apart && segments_.back().is_large != run.small;
  }

  void begin(const PageRun& run) {
    SegmentInfo& segment = segments_.emplace_back();
    segment.device = static_cast<DeviceIndex>(heap_.device);
    segment.address = run.address;
    segment.stream = reinterpret_cast<void*>(heap_.stream);
    segment.is_large = !run.small;
    segment.is_expandable = expandable_;
    segment.owner_private_pool_id = {heap_.pool.first, heap_.pool.second};
    at_ = run.address;
  }

  void add_hole(Address end) {
    if (end == at_) return;
    TorchBlock hole;
    hole.size = end - at_;
    append(std::move(hole));
  }

  void add_block(const BlockInfo& info) {
    TorchBlock block;
    block.size = info.rounded;
    block.requested_size = info.requested;
    block.allocated = !info.pending;
    block.active = true;
    if (const auto context = contexts_.find(info.address); context != contexts_.end())
      block.context_when_allocated = context->second;
    SegmentInfo& segment = segments_.back();
    segment.active_size += info.rounded;
    if (block.allocated) {
      segment.allocated_size += info.rounded;
      segment.requested_size += info.requested;
    }
    append(std::move(block));
  }

  void append(TorchBlock block) {
    at_ += block.size;
    segments_.back().total_size += block.size;
    segments_.back().blocks.push_back(std::move(block));
  }

  const HeapId heap_;
  const bool expandable_;
  const Contexts& contexts_;
  std::vector<SegmentInfo>& segments_;
  Address at_ = 0;  // the end of what the last segment shows
};

SegmentInfo spare_segment(DeviceIndex device, Bytes bytes) {
  SegmentInfo segment;
  segment.device = device;
  segment.total_size = bytes;
  segment.is_large = segment.is_expandable = true;
  segment.blocks.emplace_back().size = bytes;
  return segment;
}

template <typename Config>
bool reuses_in_captures() {
  if constexpr (requires { Config::graph_capture_record_stream_reuse(); })
    return Config::graph_capture_record_stream_reuse();
  else
    return false;
}

// What torch was configured with, except for what shapes blocks: there poolalloc has ways of its own.
template <typename Config, typename Info>
void describe_settings(Info& info) {
  info.last_allocator_settings = c10::CachingAllocator::getAllocatorSettings();
  info.max_split_size = std::numeric_limits<std::size_t>::max();  // a block of any size may be divided
  info.garbage_collection_threshold = 0;
  info.expandable_segments = true;
  info.release_lock_on_malloc = true;
  info.graph_capture_record_stream_reuse = reuses_in_captures<c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig>();
  info.pinned_num_register_threads =
      c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig::pinned_num_register_threads();
  info.pinned_use_host_register = c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig::pinned_use_cuda_host_register();
  if constexpr (requires { info.max_round_threshold; }) {
    info.max_round_threshold = Config::pinned_max_round_threshold();
    info.max_cached_size = Config::pinned_max_cached_size();
  }
}

}  // namespace

SnapshotInfo TorchAllocator::snapshot(MempoolId_t pool, bool include_traces) {
  History& history = History::instance();
  const bool all_pools = pool == MempoolId_t{0, 0};
  SnapshotInfo result;
  for (DeviceIndex device = 0; device < devices_; ++device) {
    const Contexts contexts = history.contexts(device);
    std::vector<TraceEntry>& trace = result.device_traces.emplace_back();
    if (include_traces) {
      trace = history.entries(device);
      if (!all_pools) std::erase_if(trace, [&](const TraceEntry& entry) { return entry.mempool_ != pool; });
    }
    const std::size_t before = result.segments.size();
    const DeviceLayout layout = plugin_allocator().layout(device);
    for (const HeapLayout& heap : layout.heaps)
      if (all_pools || heap.heap.pool == id_of(pool)) Segments(heap, contexts, result.segments);
    if (all_pools && layout.spare != 0) result.segments.push_back(spare_segment(device, layout.spare));
    std::sort(result.segments.begin() + static_cast<std::ptrdiff_t>(before), result.segments.end(),
              [](const SegmentInfo& a, const SegmentInfo& b) { return a.address < b.address; });
    Bytes active = 0;
    for (std::size_t i = before; i < result.segments.size(); ++i) active += result.segments[i].active_size;
    history.snapshot_taken(device, id_of(pool), active);
  }
  if (include_traces) result.external_annotations = history.annotations();
  describe_settings<c10::CachingAllocator::AcceleratorAllocatorConfig>(result.config_metadata);
  return result;
}

}  // namespace poolalloc::bridge
