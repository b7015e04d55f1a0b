// poolalloc's statistics under torch's names. docs/install.md, "Statistics", says which is which.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "bridge/torch_allocator.h"
#include "plugin/plugin.h"

namespace poolalloc::bridge {
namespace {

using TorchStats = c10::CachingDeviceAllocator::DeviceStats;
using c10::CachingAllocator::Stat;
using c10::CachingAllocator::StatArray;

enum { kAll, kSmall, kLarge };  // torch's StatType

Stat stat_of(const Counter& counter, Bytes unit = 1) {
  const auto in_units = [unit](std::int64_t value) { return value / static_cast<std::int64_t>(unit); };
  Stat stat;
  stat.current = in_units(counter.current);
  stat.peak = in_units(counter.peak);
  stat.allocated = in_units(static_cast<std::int64_t>(counter.total));
  stat.freed = stat.allocated - stat.current;
  return stat;
}

// One quantity of all, small and large blocks.
StatArray array_of(const DeviceStats& stats, Counter BlockStats::* counter, Bytes unit = 1) {
  StatArray array;
  array[kAll] = stat_of(stats.all.*counter, unit);
  array[kSmall] = stat_of(stats.small.*counter, unit);
  array[kLarge] = stat_of(stats.large.*counter, unit);
  return array;
}

// How many gaps there are is known, how many there were is not: peak and history say what is certain.
Stat gap_count(std::uint64_t now) {
  Stat stat;
  stat.current = stat.peak = stat.allocated = static_cast<std::int64_t>(now);
  return stat;
}

// Private pools keep their own figure, where this torch has a place for it.
template <typename Stats>
void add_private_pools(Stats& to, const DeviceStats& from) {
  if constexpr (requires { to.reserved_bytes_by_private_pools; }) {
    for (const HeapStats& heap : from.heaps) {
      if (heap.pool == PoolId{}) continue;
      StatArray& array = to.reserved_bytes_by_private_pools[MempoolId_t{heap.pool.first, heap.pool.second}];
      const auto add = [](Stat& into, const Stat& one) {
        into.current += one.current;
        into.peak += one.peak;
        into.allocated += one.allocated;
        into.freed += one.freed;
      };
      add(array[kAll], stat_of(heap.all.reserved));
      add(array[kSmall], stat_of(heap.small.reserved));
      add(array[kLarge], stat_of(heap.large.reserved));
    }
  }
}

TorchStats torch_stats(const DeviceStats& stats) {
  TorchStats result;
  result.allocation = array_of(stats, &BlockStats::blocks);
  result.segment = array_of(stats, &BlockStats::reserved, kPageBytes);
  result.active = array_of(stats, &BlockStats::held_blocks);
  result.inactive_split = {gap_count(stats.all.gaps), gap_count(stats.small.gaps), gap_count(stats.large.gaps)};
  result.allocated_bytes = array_of(stats, &BlockStats::live);
  result.reserved_bytes = array_of(stats, &BlockStats::reserved);
  result.active_bytes = array_of(stats, &BlockStats::held);
  result.inactive_split_bytes = array_of(stats, &BlockStats::unused);
  result.requested_bytes = array_of(stats, &BlockStats::requested);
  result.num_alloc_retries = static_cast<std::int64_t>(stats.retries);
  result.num_ooms = static_cast<std::int64_t>(stats.out_of_memory);
  result.num_sync_all_streams = static_cast<std::int64_t>(stats.waits);
  result.num_device_alloc = static_cast<std::int64_t>(stats.pages_created);
  result.num_device_free = static_cast<std::int64_t>(stats.pages_destroyed);
  result.max_split_size = -1;  // as torch writes "no limit": a block of any size may be split
  add_private_pools(result, stats);
  return result;
}

// Every Stat and count that reset_accumulated_memory_stats starts again, of two figures side by side.
template <typename Stats, typename Visit>
void visit_accumulated(Stats& a, Stats& b, Visit visit) {
  for (auto array : {&TorchStats::allocation, &TorchStats::segment, &TorchStats::active, &TorchStats::inactive_split,
                     &TorchStats::allocated_bytes, &TorchStats::reserved_bytes, &TorchStats::active_bytes,
                     &TorchStats::inactive_split_bytes, &TorchStats::requested_bytes})
    for (std::size_t kind = 0; kind < (a.*array).size(); ++kind) {
      visit((a.*array)[kind].allocated, (b.*array)[kind].allocated);
      visit((a.*array)[kind].freed, (b.*array)[kind].freed);
    }
  for (auto count : {&TorchStats::num_alloc_retries, &TorchStats::num_ooms, &TorchStats::num_sync_all_streams,
                     &TorchStats::num_device_alloc, &TorchStats::num_device_free})
    visit(a.*count, b.*count);
  if constexpr (requires { a.reserved_bytes_by_private_pools; }) {
    for (auto& [pool, array] : a.reserved_bytes_by_private_pools)
      if (auto other = b.reserved_bytes_by_private_pools.find(pool); other != b.reserved_bytes_by_private_pools.end())
        for (std::size_t kind = 0; kind < array.size(); ++kind) {
          visit(array[kind].allocated, other->second[kind].allocated);
          visit(array[kind].freed, other->second[kind].freed);
        }
  }
}

}  // namespace

TorchStats TorchAllocator::getDeviceStats(DeviceIndex device) {
  TorchStats stats = torch_stats(plugin_allocator().stats(device));
  const std::lock_guard guard(mutex_);
  if (auto start = accumulated_since_.find(device); start != accumulated_since_.end())
    visit_accumulated(stats, start->second, [](std::int64_t& now, std::int64_t then) { now -= then; });
  return stats;
}

void TorchAllocator::resetAccumulatedStats(DeviceIndex device) {
  TorchStats stats = torch_stats(plugin_allocator().stats(device));
  const std::lock_guard guard(mutex_);
  accumulated_since_.insert_or_assign(device, std::move(stats));
}

void TorchAllocator::resetPeakStats(DeviceIndex device) {
  as_torch_errors([&] { plugin_allocator().reset_peak_stats(device); });
}

// cuDNN asks how large a workspace may be: what the device has free, and what poolalloc holds idle or would release.
// Idle pages need not be neighbours to become one block.
void TorchAllocator::cacheInfo(DeviceIndex device, std::size_t* largest_block) {
  const DeviceStats stats = plugin_allocator().stats(device);
  const auto reserved = static_cast<Bytes>(stats.reserved.current);
  const Bytes allowed = stats.limit_bytes > reserved ? stats.limit_bytes - reserved : 0;
  if (*largest_block == 0) *largest_block = getMemoryInfo(device).first;
  *largest_block = std::min<std::size_t>(*largest_block, allowed) +
                   static_cast<std::size_t>(stats.idle.current + stats.kept.current);
}

std::vector<c10::cuda::CUDACachingAllocator::StreamSegmentSize> TorchAllocator::getExpandableSegmentSizes(
    DeviceIndex device) {
  std::vector<c10::cuda::CUDACachingAllocator::StreamSegmentSize> sizes;
  for (const HeapStats& heap : plugin_allocator().stats(device).heaps) {
    const auto stream = reinterpret_cast<cudaStream_t>(heap.stream);
    if (heap.small.reserved.current != 0)
      sizes.emplace_back(stream, true, static_cast<std::size_t>(heap.small.reserved.current));
    if (heap.large.reserved.current != 0)
      sizes.emplace_back(stream, false, static_cast<std::size_t>(heap.large.reserved.current));
  }
  return sizes;
}

}  // namespace poolalloc::bridge
