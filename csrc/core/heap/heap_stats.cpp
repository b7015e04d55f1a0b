// What a heap counts and checks: statistics, device totals, validate(). The counting itself is in heap.h and heap.cpp.
#include <algorithm>

#include "core/base/check.h"
#include "core/heap/heap.h"

namespace poolalloc {

void Heap::note_held() {
  const auto note = [](Waiting& waiting, std::int64_t blocks, std::int64_t bytes) {
    waiting.peak_blocks = std::max(waiting.peak_blocks, blocks + waiting.blocks);
    waiting.peak_bytes = std::max(waiting.peak_bytes, bytes + waiting.bytes);
  };
  note(all_waiting_, counts_.blocks.current(), counts_.live.current());
  for (const BlockKind kind : {kSmall, kLarge})
    note(waiting_[kind], counts_.blocks.current(kind), counts_.live.current(kind));
}

void Heap::publish_from_now() {
  const Guard guard(*this);
  publish_all();
  shared_.requested.raise_peak(counts_.requested.counter().peak);
  shared_.live.raise_peak(counts_.live.counter().peak);
  shared_.pending.raise_peak(pending_bytes_.peak);
  shared_.kept.raise_peak(kept_bytes_.peak);
  shared_.resident.raise_peak(pages_.resident().peak);
  set_attention();
}

void Heap::publish() {
  const Guard guard(*this);
  publish_all();
}

// Others want what is idle here: so that they know how far the stream has come with it, a mark is left behind every
// 1/32 of the heap that becomes idle, as long as somebody has asked lately.
void Heap::publish_change() {
  constexpr std::int64_t kParts = 32, kLeast = 8 * kPageBytes;
  publish_all();
  if (marks_wanted_ == 0 || released() - marked_ < std::max(pages_.held().current / kParts, kLeast)) [[likely]]
    return;
  if (!lends() || shared_.gate.captures()) return;
  --marks_wanted_;
  leave_mark();
}

void Heap::publish_all() {
  const auto send = [](DeviceTotals& total, std::int64_t now, std::int64_t& before) {
    if (now != before) total.add(now - before);
    before = now;
  };
  send(shared_.requested, counts_.requested.current(), published_.requested);
  send(shared_.live, counts_.live.current(), published_.live);
  send(shared_.pending, pending_bytes_.current, published_.pending);
  send(shared_.kept, kept_bytes_.current, published_.kept);
  send(shared_.resident, asleep_ ? 0 : pages_.resident().current, published_.resident);
  const std::int64_t idle = ordinary_ ? pages_.idle_frames() : 0;
  shared_.idle_pages.fetch_add(idle - published_.idle_pages, std::memory_order_relaxed);
  published_.idle_pages = idle;
}

// What live blocks and pending ones have in common: blocks that cannot be handed out.
void Heap::complete(BlockStats& stats, const Waiting& waiting) const {
  stats.held_blocks = {stats.blocks.current + waiting.blocks, std::max(stats.blocks.peak, waiting.peak_blocks),
                       stats.blocks.total};
  stats.held = {stats.live.current + waiting.bytes, std::max(stats.live.peak, waiting.peak_bytes), stats.live.total};
}

// Pages are where they were, by the tables, but the device has their memory.
void Heap::sleep_through(HeapStats& stats) {
  stats.asleep = static_cast<Bytes>(stats.reserved.current);
  for (Counter* counter : {&stats.resident, &stats.reserved, &stats.idle}) counter->current = 0;
  for (BlockStats* part : {&stats.all, &stats.small, &stats.large}) {
    part->reserved.current = part->unused.current = 0;
    part->gaps = 0;
  }
  stats.bins.clear();
  stats.arena_rounded = stats.arena_resident = stats.uncut = stats.removable = 0;
  stats.mappings = 0;
}

HeapStats Heap::stats() const {
  const Guard guard(*this);
  HeapStats stats;
  stats.stream = stream_;
  stats.pool = pool_;
  stats.requested = counts_.requested.counter();
  stats.live = counts_.live.counter();
  stats.pending = pending_bytes_;
  stats.kept = kept_bytes_;
  stats.resident = pages_.resident();
  stats.reserved = pages_.held();
  stats.idle.current = stats.reserved.current - stats.resident.current;
  stats.allocations = counts_.blocks.counter().total;
  stats.frees = stats.allocations - static_cast<std::uint64_t>(counts_.blocks.current());
  stats.waits = waits_.load(std::memory_order_relaxed);
  stats.pages_aliased = pages_.aliased();
  stats.pending_completed = pending_completed_;
  stats.all.blocks = counts_.blocks.counter();
  stats.all.requested = stats.requested;
  stats.all.live = stats.live;
  stats.all.reserved = stats.reserved;
  complete(stats.all, all_waiting_);
  for (const BlockKind kind : {kSmall, kLarge}) {
    BlockStats& part = kind == kSmall ? stats.small : stats.large;
    part.blocks = counts_.blocks.counter(kind);
    part.requested = counts_.requested.counter(kind);
    part.live = counts_.live.counter(kind);
    complete(part, waiting_[kind]);
  }
  stats.small.reserved = reserved_[kSmall];
  stats.large.reserved = reserved_[kLarge];
  stats.large.reserved.move_to(stats.reserved.current - reserved_[kSmall].current);
  // Pages that become resident add to it, and so does every block that goes.
  const Bytes gone = stats.all.held.total - static_cast<Bytes>(stats.all.held.current);
  Bytes gone_from_arena = arena_bytes_.total - static_cast<Bytes>(arena_bytes_.current);
  if (exact_ != nullptr) {  // kept ones went, too, and those made ahead never came
    gone_from_arena += kept_bytes_.total - exact_->made_ahead - exact_->released;
    stats.kept_hits = exact_->hits;
    stats.kept_misses = exact_->misses;
    stats.kept_released = exact_->bins.released();
  }
  stats.all.unused = {unused(kSmall) + unused(kLarge), all_unused_peak_, stats.resident.total + gone};
  stats.small.unused = {unused(kSmall), unused_peak_[kSmall], reserved_[kSmall].total + gone - gone_from_arena};
  stats.large.unused = {unused(kLarge), unused_peak_[kLarge], stats.all.unused.total - stats.small.unused.total};
  stats.small.gaps = slabs_.with_room();
  stats.large.gaps = arena_.holes();
  stats.all.gaps = stats.small.gaps + stats.large.gaps;
  stats.bins = slabs_.stats();
  stats.live_blocks = arena_.live_blocks();
  if (planning_ != nullptr) {
    stats.live_blocks += planning_->blocks.live_blocks();
    stats.plan_hits = planning_->hits;
    stats.plan_misses = planning_->misses;
    stats.plan_resyncs = planning_->cursor.resynchronized();
  }
  Bytes bins_resident = 0;
  for (const BinStats& bin : stats.bins) {
    stats.live_blocks += bin.live_blocks;
    bins_resident += bin.resident;
  }
  const Bytes small_resident = slabs_.resident_pages() * kPageBytes;
  stats.uncut = small_resident - bins_resident;
  stats.arena_rounded = static_cast<Bytes>(arena_bytes_.current - kept_bytes_.current);
  stats.arena_resident = static_cast<Bytes>(stats.resident.current) - small_resident;
  stats.address_space = slabs_.touched() * kPageBytes + (arena_.highest() - arena_.first_offset());
  if (planning_ != nullptr) stats.address_space += planning_->blocks.touched();
  stats.mappings = pages_.mappings();
  stats.removable = static_cast<Bytes>(stats.idle.current);
  if (segments_ != nullptr) {
    stats.segments = segments_->segments();
    stats.removable = segments_->removable_bytes();
  }
  stats.metadata_bytes = sizeof(*this) + pages_.metadata_bytes() + slabs_.metadata_bytes() + arena_.metadata_bytes() +
                         uses_.metadata_bytes() + names_.size() * 2 * sizeof(Bytes);
  if (planning_ != nullptr)
    stats.metadata_bytes += planning_->blocks.metadata_bytes() + planning_->cursor.metadata_bytes();
  if (exact_ != nullptr) stats.metadata_bytes += exact_->bins.metadata_bytes();
  if (asleep_) sleep_through(stats);
  return stats;
}

std::uint64_t Heap::live_blocks() const {
  const Guard guard(*this);
  return static_cast<std::uint64_t>(counts_.blocks.current()) + uses_.pending();
}

void Heap::reset_peaks() {
  const Guard guard(*this);
  counts_.reset_peaks();
  pending_bytes_.reset_peak();
  kept_bytes_.reset_peak();
  all_waiting_.peak_blocks = all_waiting_.peak_bytes = 0;
  for (Waiting& waiting : waiting_) waiting.peak_blocks = waiting.peak_bytes = 0;
  if (uses_.pending() != 0) note_held();
  for (Counter& reserved : reserved_) reserved.reset_peak();
  unused_peak_[kSmall] = unused(kSmall);
  unused_peak_[kLarge] = unused(kLarge);
  all_unused_peak_ = unused_peak_[kSmall] + unused_peak_[kLarge];
  pages_.reset_peaks();
}

void Heap::validate() const {
  const Guard guard(*this);
  std::vector<std::uint32_t> blocks_of(pages_.pages());
  slabs_.validate(blocks_of);
  arena_.validate(blocks_of);
  if (planning_ != nullptr) {
    planning_->blocks.validate(blocks_of);
    planning_->cursor.validate();
  }
  pages_.validate(blocks_of);

  Bytes bins_rounded = 0;
  std::uint64_t blocks = arena_.live_blocks() + (planning_ != nullptr ? planning_->blocks.live_blocks() : 0);
  for (const BinStats& bin : slabs_.stats()) {
    POOLALLOC_ENSURE(bin.requested <= bin.rounded && bin.rounded <= bin.resident, "requested <= rounded <= resident");
    bins_rounded += bin.rounded;
    blocks += bin.live_blocks;
  }
  if (exact_ != nullptr) exact_->bins.validate();
  POOLALLOC_ENSURE(kept_bytes_.current == static_cast<std::int64_t>(exact_ != nullptr ? exact_->bins.bytes() : 0),
                   "kept = sum of the exact bins");
  POOLALLOC_ENSURE(aside_bytes_ == pending_bytes_.current + kept_bytes_.current, "set aside = pending + kept");
  const Bytes rounded = bins_rounded + static_cast<Bytes>(arena_bytes_.current - kept_bytes_.current);
  uses_.validate();
  POOLALLOC_ENSURE(pending_bytes_.current == static_cast<std::int64_t>(uses_.pending_bytes()),
                   "pending frees are counted");
  POOLALLOC_ENSURE(counts_.live.current() + pending_bytes_.current == static_cast<std::int64_t>(rounded),
                   "rounded = live + pending");
  POOLALLOC_ENSURE(counts_.requested.current() <= counts_.live.current(), "requested <= live");
  POOLALLOC_ENSURE(static_cast<std::int64_t>(rounded) + kept_bytes_.current <= pages_.resident().current,
                   "rounded + kept <= resident");
  POOLALLOC_ENSURE(blocks == static_cast<std::uint64_t>(counts_.blocks.current()) + uses_.pending(),
                   "blocks = live blocks + pending ones");
  for (auto quantity : {&BlockCounts::blocks, &BlockCounts::requested, &BlockCounts::live})
    POOLALLOC_ENSURE(
        (counts_.*quantity).current(kSmall) + (counts_.*quantity).current(kLarge) == (counts_.*quantity).current(),
        "all = small + large");
  POOLALLOC_ENSURE(all_waiting_.bytes == pending_bytes_.current &&
                       waiting_[kSmall].bytes + waiting_[kLarge].bytes == all_waiting_.bytes &&
                       waiting_[kSmall].blocks + waiting_[kLarge].blocks == all_waiting_.blocks,
                   "pending blocks are counted by size");
  POOLALLOC_ENSURE(unused(kSmall) >= 0 && unused(kLarge) >= 0, "slabs and arena fit into their pages");
  POOLALLOC_ENSURE(((attention_ & kTracks) != 0) == !(uses_.empty() && names_.empty()) &&
                       ((attention_ & kWaits) != 0) == (uses_.pending() != 0) &&
                       ((attention_ & kPlans) != 0) == (planning_ != nullptr) &&
                       ((attention_ & kKeeps) != 0) == (exact_ != nullptr) && (attention_ & kPutOff) == 0,
                   "calls know what to look to");
}

}  // namespace poolalloc
