#include "core/heap.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "core/check.h"

namespace poolalloc {

Heap::Heap(DeviceShared& shared, StreamId stream, PoolId pool, Address base, Bytes slab_bytes, Bytes arena_bytes,
           const Options& options)
    : shared_(shared),
      stream_(stream),
      pool_(pool),
      bin_limit_(options.bin_limit),
      pages_(shared.driver, shared.device, shared.supply, base, static_cast<PageIndex>(slab_bytes / kPageBytes),
             static_cast<PageIndex>((slab_bytes + arena_bytes) / kPageBytes)),
      slabs_(pages_, static_cast<PageIndex>(slab_bytes / kPageBytes)),
      arena_(pages_, static_cast<PageIndex>(slab_bytes / kPageBytes), static_cast<int>(options.placement_candidates)) {}

Heap::~Heap() {
  if (progress_event_ != 0) unused_events_.push_back(progress_event_);
  for (EventHandle event : unused_events_) shared_.driver.destroy_event(shared_.device, event);
}

// --- the hot path ------------------------------------------------------------------------------------------------

Status Heap::allocate(Bytes bytes, Address* address) {
  std::lock_guard guard(lock_);
  Bytes offset = 0, rounded = 0;
  pages_.permit(pending_.empty(), may_unmap());
  const std::uint64_t maps = pages_.maps_made();
  Status status = place(bytes, &offset, &rounded);
  if (status != Status::ok) [[unlikely]] {
    status = allocate_missing(bytes, &offset, &rounded, status);
    if (status != Status::ok) return status;
  }
  if (pages_.maps_made() != maps) [[unlikely]]
    note_progress();
  count_in(bytes, rounded);
  if (bytes > bin_limit_) note_unused(kLarge);  // idle pages that became resident
  publish_if_due();
  *address = pages_.base() + offset;
  return Status::ok;
}

Status Heap::place(Bytes bytes, Bytes* offset, Bytes* rounded) {
  if (bytes <= bin_limit_) {
    const int bin = bin_of(bytes);
    *rounded = bin_bytes(bin);
    return slabs_.allocate(bin, bytes, offset);
  }
  Arena::Block* block = nullptr;
  const Status status = arena_.allocate(bytes, &block);
  if (status == Status::ok) {
    arena_bytes_.add(block->size);
    *offset = block->offset;
    *rounded = block->size;
  }
  return status;
}

inline void Heap::count_in(Bytes requested, Bytes rounded) {
  all_.add(requested, rounded);
  kinds_[kind_of(rounded)].add(requested, rounded);
  if (!pending_.empty()) [[unlikely]]
    note_held();
  note_pages_if_changed();
}

inline void Heap::count_out(Bytes requested, Bytes rounded) {
  all_.subtract(requested, rounded);
  kinds_[kind_of(rounded)].subtract(requested, rounded);
}

bool Heap::free(Address address) {
  const Bytes offset = address - pages_.base();
  const auto page = static_cast<PageIndex>(offset / kPageBytes);
  std::lock_guard guard(lock_);
  if (!tracked_.empty()) [[unlikely]]
    return free_tracked(page, offset);
  if (slabs_.serves(page)) {
    const Slabs::Found found = slabs_.find(page, offset);
    if (found.size == 0) return false;
    slabs_.free(found);
    count_out(found.requested, found.size);
    note_unused(kSmall);
  } else {
    Arena::Block* block = arena_.at(offset);
    if (block == nullptr || !block->live()) return false;
    const Bytes size = block->size, requested = block->requested;
    arena_bytes_.subtract(size);
    arena_.free(block);
    count_out(requested, size);
    note_unused(kLarge);
  }
  note_pages_if_changed();
  publish_if_due();
  return true;
}

Heap::Found Heap::find(PageIndex page, Bytes offset) const {
  Found found;
  if (slabs_.serves(page)) {
    found.slot = slabs_.find(page, offset);
    found.size = found.slot.size;
    found.requested = found.slot.requested;
  } else if (Arena::Block* block = arena_.at(offset); block != nullptr && block->live()) {
    found.block = block;
    found.size = block->size;
    found.requested = block->requested;
  }
  return found;
}

void Heap::give_back(const Found& found) {
  if (found.block == nullptr) {
    slabs_.free(found.slot);
    note_unused(kSmall);
  } else {
    arena_bytes_.subtract(found.size);
    arena_.free(found.block);
    note_unused(kLarge);
  }
  note_pages_if_changed();
}

// --- uses by other streams ---------------------------------------------------------------------------------------

bool Heap::record_stream(Address address, StreamId stream) {
  const Bytes offset = address - pages_.base();
  std::lock_guard guard(lock_);
  if (find(static_cast<PageIndex>(offset / kPageBytes), offset).size == 0) return false;
  if (stream == stream_) return true;
  Tracked& tracked = tracked_[offset];
  if (tracked.pending) return false;
  if (std::find(tracked.streams.begin(), tracked.streams.end(), stream) == tracked.streams.end())
    tracked.streams.push_back(stream);
  return true;
}

// Some block of the heap is used by another stream, or was when it was freed: perhaps this one.
bool Heap::free_tracked(PageIndex page, Bytes offset) {
  const Found found = find(page, offset);
  if (found.size == 0) return false;
  const auto entry = tracked_.find(offset);
  if (entry != tracked_.end() && entry->second.pending) return false;  // freed before
  count_out(found.requested, found.size);
  if (entry == tracked_.end()) {
    give_back(found);
  } else {
    Waiting& waiting = waiting_[kind_of(found.size)];
    ++waiting.blocks;
    waiting.bytes += static_cast<std::int64_t>(found.size);
    ++all_waiting_.blocks;
    all_waiting_.bytes += static_cast<std::int64_t>(found.size);
    entry->second.pending = true;
    pending_bytes_.add(found.size);
    Pending pending;
    pending.offset = offset;
    pending.size = found.size;
    pending.streams = std::move(entry->second.streams);
    // An event recorded now would become part of the graph being captured: the free waits for the capture's end.
    if (shared_.captures.load(std::memory_order_relaxed) == 0) record_events(pending);
    pending_.push_back(std::move(pending));
  }
  publish_if_due();
  return true;
}

// Records an event behind the work of every stream that uses the block. Where the driver refuses one, the stream may be
// gone, but not its work: it is tried again at the next poll, and wait_pending waits for the whole device.
void Heap::record_events(Pending& pending) {
  while (!pending.streams.empty()) {
    const EventHandle event = take_event();
    if (event == 0) return;
    if (shared_.driver.record_event(shared_.device, event, pending.streams.back()) != Status::ok) {
      unused_events_.push_back(event);
      return;
    }
    pending.events.push_back(event);
    pending.streams.pop_back();
  }
}

// 0 if the driver gives none.
EventHandle Heap::take_event() {
  EventHandle event = 0;
  if (!unused_events_.empty()) {
    event = unused_events_.back();
    unused_events_.pop_back();
  } else if (shared_.driver.create_event(shared_.device, &event) != Status::ok) {
    return 0;
  }
  return event;
}

std::size_t Heap::poll_pending() {
  std::lock_guard guard(lock_);
  return poll_pending_locked();
}

std::size_t Heap::poll_pending_locked() {
  if (pending_.empty() || shared_.captures.load(std::memory_order_relaxed) != 0) return 0;
  std::size_t finished = 0, kept = 0;
  for (Pending& pending : pending_) {
    record_events(pending);
    while (!pending.events.empty() && shared_.driver.query_event(shared_.device, pending.events.back()) == Status::ok) {
      unused_events_.push_back(pending.events.back());
      pending.events.pop_back();
    }
    if (pending.events.empty() && pending.streams.empty()) {
      finish(pending);
      ++finished;
    } else {
      if (&pending_[kept] != &pending) pending_[kept] = std::move(pending);
      ++kept;
    }
  }
  pending_.resize(kept);
  pending_completed_ += finished;
  return finished;
}

void Heap::finish(const Pending& pending) {
  const auto page = static_cast<PageIndex>(pending.offset / kPageBytes);
  pending_bytes_.subtract(pending.size);
  Waiting& waiting = waiting_[kind_of(pending.size)];
  --waiting.blocks;
  waiting.bytes -= static_cast<std::int64_t>(pending.size);
  --all_waiting_.blocks;
  all_waiting_.bytes -= static_cast<std::int64_t>(pending.size);
  tracked_.erase(pending.offset);
  give_back(find(page, pending.offset));
}

std::size_t Heap::wait_pending() {
  if (shared_.captures.load(std::memory_order_relaxed) != 0) return 0;
  std::vector<EventHandle> events;
  std::uint64_t refused = 0;
  {
    std::lock_guard guard(lock_);
    if (pending_.empty()) return 0;
    for (Pending& pending : pending_) {
      record_events(pending);
      events.insert(events.end(), pending.events.begin(), pending.events.end());
      if (!pending.streams.empty()) pending.refused = refused = ++refusals_;
    }
  }
  waits_.fetch_add(1, std::memory_order_relaxed);
  // Another thread may finish these frees meanwhile and reuse an event: then this waits longer, never shorter.
  for (EventHandle event : events) shared_.driver.synchronize_event(shared_.device, event);
  const bool all_done = refused != 0 && shared_.driver.synchronize_device(shared_.device) == Status::ok;
  std::lock_guard guard(lock_);
  for (Pending& pending : pending_)
    if (all_done && pending.refused != 0 && pending.refused <= refused) pending.streams.clear();
  return poll_pending_locked();
}

// --- pages -------------------------------------------------------------------------------------------------------

// Pages or addresses were missing: pending frees may have them by now. Only then may the heap grow.
Status Heap::allocate_missing(Bytes bytes, Bytes* offset, Bytes* rounded, Status status) {
  if (shared_.captures.load(std::memory_order_relaxed) == 0) pages_.return_left_behind();
  const bool grew_in_vain = pending_.empty();
  if (poll_pending_locked() == 0 && grew_in_vain) return status;
  pages_.permit(true, may_unmap());
  status = place(bytes, offset, rounded);
  if (status != Status::ok && shared_.captures.load(std::memory_order_relaxed) == 0) pages_.return_left_behind();
  return status;
}

// Called when the driver has been at work anyway: learns how far the stream has come, so that mappings nothing uses any
// more can be replaced. One event is under way at a time.
void Heap::note_progress() {
  if (!may_unmap()) return;
  if (progress_event_ != 0) {
    if (shared_.driver.query_event(shared_.device, progress_event_) != Status::ok) return;
    pages_.set_completed(progress_tick_);
  } else {
    progress_event_ = take_event();
    if (progress_event_ == 0) return;
  }
  progress_tick_ = pages_.tick();
  if (shared_.driver.record_event(shared_.device, progress_event_, stream_) != Status::ok) {
    unused_events_.push_back(progress_event_);
    progress_event_ = 0;
  }
}

Bytes Heap::reclaim(std::uint32_t at_most_frames) {
  if (shared_.captures.load(std::memory_order_relaxed) != 0) return 0;
  Residency::Detached leaving;
  EventHandle event = 0;
  {
    std::lock_guard guard(lock_);
    pages_.return_left_behind();
    event = take_event();
    if (event == 0) return 0;
    pages_.detach_idle(at_most_frames, &leaving);
    pages_.detach_blocked(&leaving);
    if (leaving.empty()) {
      unused_events_.push_back(event);
      return 0;
    }
    if (shared_.driver.record_event(shared_.device, event, stream_) != Status::ok) {
      unused_events_.push_back(event);
      pages_.postpone(leaving);
      return 0;
    }
  }
  waits_.fetch_add(1, std::memory_order_relaxed);
  const bool done = shared_.driver.synchronize_event(shared_.device, event) == Status::ok ||
                    shared_.driver.synchronize_device(shared_.device) == Status::ok;
  std::lock_guard guard(lock_);
  unused_events_.push_back(event);
  if (!done || shared_.captures.load(std::memory_order_relaxed) != 0) {
    pages_.postpone(leaving);
    return 0;
  }
  return pages_.return_detached(leaving) * kPageBytes;
}

Status Heap::allow_access_to_mapped(DeviceIndex peer) {
  std::lock_guard guard(lock_);
  return pages_.allow_access_to_mapped(peer);
}

void Heap::retire() {
  std::lock_guard guard(lock_);
  pages_.return_all();
}

std::optional<std::pair<Address, Bytes>> Heap::containing(Address address) const {
  const Bytes offset = address - pages_.base();
  std::lock_guard guard(lock_);
  if (const auto page = static_cast<PageIndex>(offset / kPageBytes); slabs_.serves(page)) {
    const Slabs::Found found = slabs_.containing(page, offset);
    if (found.size == 0) return std::nullopt;
    return std::pair{pages_.base() + found.slab->offset + found.slot * found.size, found.size};
  }
  const Arena::Block* block = arena_.containing(offset);
  if (block == nullptr) return std::nullopt;
  return std::pair{pages_.base() + block->offset, block->size};
}

bool Heap::mapped() const {
  std::lock_guard guard(lock_);
  return pages_.mappings() != 0;
}

BlockInfo Heap::describe(Bytes offset, Bytes size, Bytes requested) const {
  const auto entry = tracked_.find(offset);
  const bool pending = entry != tracked_.end() && entry->second.pending;
  return {pages_.base() + offset, size, requested, pending, shared_.device, stream_, pool_};
}

std::optional<BlockInfo> Heap::block(Address address) const {
  const Bytes offset = address - pages_.base();
  std::lock_guard guard(lock_);
  if (const auto page = static_cast<PageIndex>(offset / kPageBytes); slabs_.serves(page)) {
    const Slabs::Found found = slabs_.containing(page, offset);
    if (found.size == 0) return std::nullopt;
    return describe(found.slab->offset + found.slot * found.size, found.size, found.requested);
  }
  const Arena::Block* block = arena_.containing(offset);
  if (block == nullptr) return std::nullopt;
  return describe(block->offset, block->size, block->requested);
}

void Heap::append_blocks(std::vector<BlockInfo>& blocks) const {
  std::lock_guard guard(lock_);
  slabs_.visit([&](Bytes offset, Bytes size, Bytes requested) { blocks.push_back(describe(offset, size, requested)); });
  for (const Arena::Block* block = arena_.first_block(); block != nullptr; block = block->next)
    if (block->live()) blocks.push_back(describe(block->offset, block->size, block->requested));
}

// --- statistics --------------------------------------------------------------------------------------------------

// Of resident pages, what is in no block. Slabs and arena share no page.
std::int64_t Heap::unused(Kind kind) const {
  const std::int64_t slab_pages = static_cast<std::int64_t>(slabs_.resident_pages() * kPageBytes);
  const std::int64_t in_arena = arena_bytes_.current;
  if (kind == kLarge) return pages_.resident().current - slab_pages - in_arena;
  return slab_pages - (all_.live.current + pending_bytes_.current - in_arena);
}

// `kind` is here where a block lies, slab or arena, whatever its size.
inline void Heap::note_unused(Kind kind) {
  const std::int64_t here = unused(kind);
  if (here > unused_peak_[kind]) unused_peak_[kind] = here;
  const std::int64_t all = pages_.resident().current - all_.live.current - pending_bytes_.current;
  if (all > all_unused_peak_) all_unused_peak_ = all;
}

void Heap::note_pages() {
  noted_slab_pages_ = slabs_.resident_pages();
  noted_held_ = pages_.held().current;
  const std::int64_t slab_bytes = static_cast<std::int64_t>(noted_slab_pages_ * kPageBytes);
  reserved_[kSmall].move_to(slab_bytes);
  reserved_[kLarge].move_to(noted_held_ - slab_bytes);
  for (const Kind kind : {kSmall, kLarge}) note_unused(kind);
}

void Heap::note_held() {
  const auto note = [](const Live& live, Waiting& waiting) {
    waiting.peak_blocks = std::max(waiting.peak_blocks, live.blocks.current + waiting.blocks);
    waiting.peak_bytes = std::max(waiting.peak_bytes, live.live.current + waiting.bytes);
  };
  note(all_, all_waiting_);
  for (const Kind kind : {kSmall, kLarge}) note(kinds_[kind], waiting_[kind]);
}

BlockStats Heap::block_stats(const Live& live, const Waiting& waiting) const {
  BlockStats stats;
  stats.blocks = live.blocks;
  stats.requested = live.requested;
  stats.live = live.live;
  stats.held_blocks = {live.blocks.current + waiting.blocks, std::max(live.blocks.peak, waiting.peak_blocks),
                       live.blocks.total};
  stats.held = {live.live.current + waiting.bytes, std::max(live.live.peak, waiting.peak_bytes), live.live.total};
  return stats;
}

void Heap::publish_several() {
  if (std::abs(all_.requested.current - published_.requested) >= kPublishBytes ||
      std::abs(pages_.resident().current - published_.resident) >= kPublishBytes)
    publish_all();
}

void Heap::publish() {
  std::lock_guard guard(lock_);
  publish_all();
}

void Heap::publish_with_peaks() {
  std::lock_guard guard(lock_);
  publish_all();
  shared_.requested.raise_peak(all_.requested.peak);
  shared_.live.raise_peak(all_.live.peak);
  shared_.pending.raise_peak(pending_bytes_.peak);
  shared_.resident.raise_peak(pages_.resident().peak);
}

void Heap::publish_all() {
  const auto send = [](DeviceTotals& total, std::int64_t now, std::int64_t& before) {
    if (now != before) total.add(now - before);
    before = now;
  };
  send(shared_.requested, all_.requested.current, published_.requested);
  send(shared_.live, all_.live.current, published_.live);
  send(shared_.pending, pending_bytes_.current, published_.pending);
  send(shared_.resident, pages_.resident().current, published_.resident);
}

HeapStats Heap::stats() const {
  std::lock_guard guard(lock_);
  HeapStats stats;
  stats.stream = stream_;
  stats.pool = pool_;
  stats.requested = all_.requested;
  stats.live = all_.live;
  stats.pending = pending_bytes_;
  stats.resident = pages_.resident();
  stats.reserved = pages_.held();
  stats.idle.current = stats.reserved.current - stats.resident.current;
  stats.allocations = all_.blocks.total;
  stats.frees = all_.blocks.total - static_cast<std::uint64_t>(all_.blocks.current);
  stats.waits = waits_.load(std::memory_order_relaxed);
  stats.pages_aliased = pages_.aliased();
  stats.pending_completed = pending_completed_;
  stats.all = block_stats(all_, all_waiting_);
  stats.all.reserved = stats.reserved;
  stats.small = block_stats(kinds_[kSmall], waiting_[kSmall]);
  stats.large = block_stats(kinds_[kLarge], waiting_[kLarge]);
  stats.small.reserved = reserved_[kSmall];
  stats.large.reserved = reserved_[kLarge];
  stats.large.reserved.move_to(stats.reserved.current - reserved_[kSmall].current);
  // Pages that become resident add to it, and so does every block that goes.
  const Bytes gone = stats.all.held.total - static_cast<Bytes>(stats.all.held.current);
  const Bytes gone_from_arena = arena_bytes_.total - static_cast<Bytes>(arena_bytes_.current);
  stats.all.unused = {unused(kSmall) + unused(kLarge), all_unused_peak_, stats.resident.total + gone};
  stats.small.unused = {unused(kSmall), unused_peak_[kSmall], reserved_[kSmall].total + gone - gone_from_arena};
  stats.large.unused = {unused(kLarge), unused_peak_[kLarge], stats.all.unused.total - stats.small.unused.total};
  stats.small.gaps = slabs_.with_room();
  stats.large.gaps = arena_.holes();
  stats.all.gaps = stats.small.gaps + stats.large.gaps;
  stats.bins = slabs_.stats();
  stats.live_blocks = arena_.live_blocks();
  Bytes bins_resident = 0;
  for (const BinStats& bin : stats.bins) {
    stats.live_blocks += bin.live_blocks;
    bins_resident += bin.resident;
  }
  const Bytes small_resident = slabs_.resident_pages() * kPageBytes;
  stats.uncut = small_resident - bins_resident;
  stats.arena_rounded = static_cast<Bytes>(arena_bytes_.current);
  stats.arena_resident = static_cast<Bytes>(stats.resident.current) - small_resident;
  stats.address_space = slabs_.touched() * kPageBytes + (arena_.highest() - arena_.first_offset());
  stats.mappings = pages_.mappings();
  stats.metadata_bytes = sizeof(*this) + pages_.metadata_bytes() + slabs_.metadata_bytes() + arena_.metadata_bytes() +
                         tracked_.size() * (sizeof(Bytes) + sizeof(Tracked)) + pending_.capacity() * sizeof(Pending);
  return stats;
}

std::uint64_t Heap::live_blocks() const {
  std::lock_guard guard(lock_);
  return static_cast<std::uint64_t>(all_.blocks.current) + pending_.size();
}

void Heap::reset_peaks() {
  std::lock_guard guard(lock_);
  all_.reset_peaks();
  pending_bytes_.reset_peak();
  all_waiting_.peak_blocks = all_waiting_.peak_bytes = 0;
  for (Waiting& waiting : waiting_) waiting.peak_blocks = waiting.peak_bytes = 0;
  if (!pending_.empty()) note_held();
  for (const Kind kind : {kSmall, kLarge}) {
    kinds_[kind].reset_peaks();
    reserved_[kind].reset_peak();
    unused_peak_[kind] = unused(kind);
  }
  all_unused_peak_ = unused(kSmall) + unused(kLarge);
  pages_.reset_peaks();
}

void Heap::validate() const {
  std::lock_guard guard(lock_);
  std::vector<std::uint32_t> blocks_of(pages_.pages());
  slabs_.validate(blocks_of);
  arena_.validate(blocks_of);
  pages_.validate(blocks_of);

  Bytes bins_rounded = 0;
  std::uint64_t blocks = arena_.live_blocks();
  for (const BinStats& bin : slabs_.stats()) {
    POOLALLOC_ENSURE(bin.requested <= bin.rounded && bin.rounded <= bin.resident, "requested <= rounded <= resident");
    bins_rounded += bin.rounded;
    blocks += bin.live_blocks;
  }
  const Bytes rounded = bins_rounded + static_cast<Bytes>(arena_bytes_.current);
  Bytes pending = 0;
  for (const Pending& entry : pending_) pending += entry.size;
  POOLALLOC_ENSURE(pending_bytes_.current == static_cast<std::int64_t>(pending), "pending frees are counted");
  POOLALLOC_ENSURE(all_.live.current + pending_bytes_.current == static_cast<std::int64_t>(rounded),
                   "rounded = live + pending");
  POOLALLOC_ENSURE(all_.requested.current <= all_.live.current, "requested <= live");
  POOLALLOC_ENSURE(static_cast<std::int64_t>(rounded) <= pages_.resident().current, "rounded <= resident");
  POOLALLOC_ENSURE(blocks == static_cast<std::uint64_t>(all_.blocks.current) + pending_.size(),
                   "blocks = live blocks + pending ones");
  for (auto counter : {&Live::blocks, &Live::requested, &Live::live})
    POOLALLOC_ENSURE((kinds_[kSmall].*counter).current + (kinds_[kLarge].*counter).current == (all_.*counter).current,
                     "all = small + large");
  POOLALLOC_ENSURE(all_waiting_.bytes == pending_bytes_.current &&
                       waiting_[kSmall].bytes + waiting_[kLarge].bytes == all_waiting_.bytes &&
                       waiting_[kSmall].blocks + waiting_[kLarge].blocks == all_waiting_.blocks,
                   "pending blocks are counted by size");
  POOLALLOC_ENSURE(unused(kSmall) >= 0 && unused(kLarge) >= 0, "slabs and arena fit into their pages");
  POOLALLOC_ENSURE(pending_.empty() || !tracked_.empty(), "pending frees are tracked");
}

}  // namespace poolalloc
