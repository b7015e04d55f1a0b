#include "core/heap.h"

#include <mutex>

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
  PageTable::Detached leaving;
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

}  // namespace poolalloc
