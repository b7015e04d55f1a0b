// What a device counts, shows and checks: statistics, layout, validate().
#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/device/device_heap.h"

namespace poolalloc {

namespace {

// join(into, from) for every counter that heaps and devices have; `from` is a heap's statistics or a device's.
template <typename From, typename Join>
void join_counters(DeviceStats& stats, const From& from, Join join) {
  join(stats.requested, from.requested);
  join(stats.live, from.live);
  join(stats.pending, from.pending);
  join(stats.kept, from.kept);
  join(stats.resident, from.resident);
  for (auto [into, part] : {std::pair{&stats.all, &from.all}, {&stats.small, &from.small}, {&stats.large, &from.large}})
    for (auto counter : {&BlockStats::blocks, &BlockStats::requested, &BlockStats::live, &BlockStats::held_blocks,
                         &BlockStats::held, &BlockStats::reserved, &BlockStats::unused})
      join(into->*counter, part->*counter);
}

// Of heaps that are there together, peaks add up; of those that were there before, the highest counts.
void add(Counter& into, const Counter& from) {
  into.current += from.current;
  into.peak += from.peak;
  into.total += from.total;
}
void add_without_peak(Counter& into, const Counter& from) {
  into.current += from.current;
  into.total += from.total;
}
void raise_peak(Counter& into, const Counter& from) { into.peak = std::max(into.peak, from.peak); }

template <typename From>
void add_events(DeviceStats& stats, const From& one) {
  stats.allocations += one.allocations;
  stats.frees += one.frees;
  stats.pages_aliased += one.pages_aliased;
  stats.pending_completed += one.pending_completed;
  stats.plan_hits += one.plan_hits;
  stats.plan_misses += one.plan_misses;
  stats.plan_resyncs += one.plan_resyncs;
  stats.kept_hits += one.kept_hits;
  stats.kept_misses += one.kept_misses;
  stats.kept_released += one.kept_released;
  stats.waits += one.waits;
  stats.all.gaps += one.all.gaps;
  stats.small.gaps += one.small.gaps;
  stats.large.gaps += one.large.gaps;
  stats.live_blocks += one.live_blocks;
}

}  // namespace

// Under mutex_, as the next two.
DeviceStats DeviceHeap::sum_of_heaps() const {
  DeviceStats stats;
  const auto add_heap = [&](const Heap& heap) -> HeapStats& {
    HeapStats& one = stats.heaps.emplace_back(heap.stats());
    join_counters(stats, one, add);
    add_events(stats, one);
    stats.metadata_bytes += one.metadata_bytes;
    stats.asleep += one.asleep;
    return one;
  };
  for (auto& heap : stream_heaps_) add_heap(*heap);
  for (auto& pool : pools_)
    for (auto& heap : pool->heaps) {
      HeapStats& one = add_heap(*heap);
      if (keeps_idle(*pool) && !pool->use_on_oom) one.idle_in_pools = static_cast<Bytes>(one.idle.current);
      stats.idle_in_pools += one.idle_in_pools;
      if (pool->region != 0) one.region = region_names_->tag(pool->region);
    }
  return stats;
}

// Of heaps about to go, together with those beside them.
void DeviceHeap::keep_peaks() { join_counters(gone_, sum_of_heaps(), raise_peak); }

void DeviceHeap::keep_totals(const Heap& heap) {
  const HeapStats last = heap.stats();
  join_counters(gone_, last, add_without_peak);
  add_events(gone_, last);
}

// A stream that has fallen quiet does not ask for its pending frees itself; whoever else has the turn does.
DeviceStats DeviceHeap::stats() const {
  if (shared_.deferred.load(std::memory_order_relaxed) != 0) {
    const std::unique_lock<Lock> turn(gathering_, std::try_to_lock);
    const Visit visit = all_heaps();
    if (turn.owns_lock()) poll_pending(visit.heaps);
  }
  std::lock_guard guard(mutex_);
  DeviceStats stats = sum_of_heaps();
  join_counters(stats, gone_, add_without_peak);
  join_counters(stats, gone_, raise_peak);
  add_events(stats, gone_);
  stats.device = shared_.device;
  for (const auto& [region, memory] : regions_)
    if (const Contents* contents = memory.contents.get())
      (contents->place() == Keep::host ? stats.asleep_host : stats.asleep_file) += contents->bytes();
  stats.total_bytes = info_.total_bytes;
  stats.limit_bytes = shared_.holdings.limit();
  stats.virtual_memory = !shared_.segmented;
  stats.reserved = shared_.holdings.reserved();
  stats.unmapped = shared_.holdings.spare();
  stats.pages_created = shared_.holdings.created();
  stats.pages_destroyed = shared_.holdings.destroyed();
  stats.pages_stolen = stolen_.load(std::memory_order_relaxed);
  stats.retries = retries_.load(std::memory_order_relaxed);
  stats.callbacks = called_back_.load(std::memory_order_relaxed);
#define X(name) stats.after_##name = served_after_[static_cast<int>(LadderRung::name)].load(std::memory_order_relaxed);
  POOLALLOC_RUNGS(X)
#undef X
  stats.out_of_memory = out_of_memory_.load(std::memory_order_relaxed);
  if (shared_.several_heaps.load()) {
    const auto device_peak = [](Counter& counter, const DeviceTotals& total) {
      counter.peak = std::max(counter.current, total.peak.load(std::memory_order_relaxed));
    };
    device_peak(stats.requested, shared_.requested);
    device_peak(stats.live, shared_.live);
    device_peak(stats.pending, shared_.pending);
    device_peak(stats.kept, shared_.kept);
    device_peak(stats.resident, shared_.resident);
  }
  stats.idle.current = stats.reserved.current - stats.resident.current;
  stats.all.requested = stats.requested;
  stats.all.live = stats.live;
  stats.all.held.peak = std::max(stats.all.live.peak, std::min(stats.all.held.peak, stats.resident.peak));
  // Spare pages belong to no heap; they count as large, which is all that is not small.
  stats.all.reserved = stats.reserved;
  stats.large.reserved.current = stats.reserved.current - stats.small.reserved.current;
  stats.large.reserved.total = stats.reserved.total - std::min(stats.reserved.total, stats.small.reserved.total);
  stats.large.reserved.peak =
      std::max(stats.large.reserved.current, std::min(stats.large.reserved.peak, stats.reserved.peak));
  return stats;
}

void DeviceHeap::reset_peaks() {
  shared_.holdings.reset_peak();
  std::lock_guard guard(mutex_);
  each_heap([](Heap& heap) {
    heap.publish();
    heap.reset_peaks();
  });
  join_counters(gone_, gone_, [](Counter& counter, const Counter&) { counter.reset_peak(); });
  for (DeviceTotals* total : {&shared_.requested, &shared_.live, &shared_.pending, &shared_.kept, &shared_.resident})
    total->peak.store(total->current.load());
}

void DeviceHeap::validate() const {
  const std::lock_guard<Lock> turn(gathering_);  // the background thread may be creating pages
  Bytes held = 0;
  const Visit visit = all_heaps();
  for (Heap* heap : visit.heaps) {
    heap->validate();
    held += static_cast<Bytes>(heap->stats().reserved.current);
  }
  // Pages on their way between a heap and the supply belong to neither, so this holds only while nobody allocates.
  POOLALLOC_ENSURE(static_cast<Bytes>(shared_.holdings.reserved().current) == held + shared_.holdings.spare(),
                   "reserved = resident + idle + spare");
}

std::vector<BlockInfo> DeviceHeap::blocks(PoolId id) const {
  std::lock_guard guard(mutex_);
  const PrivatePool* pool = find_pool(id);
  std::vector<BlockInfo> found;
  if (id == PoolId{}) {
    for (auto& heap : stream_heaps_) heap->append_blocks(found);
  } else if (pool != nullptr) {
    for (auto& heap : pool->heaps) heap->append_blocks(found);
  }
  return found;
}

DeviceLayout DeviceHeap::layout() const {
  std::lock_guard guard(mutex_);
  DeviceLayout layout;
  each_heap([&](const Heap& heap) { layout.heaps.push_back(heap.layout()); });
  layout.spare = shared_.holdings.spare();
  return layout;
}

}  // namespace poolalloc
