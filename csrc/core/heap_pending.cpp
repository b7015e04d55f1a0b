// Blocks that other streams use: record_stream, and frees that wait for events behind those uses.
#include <algorithm>

#include "core/heap.h"

namespace poolalloc {

bool Heap::record_stream(Address address, StreamId stream) noexcept {
  const Guard guard(*this);
  const Bytes offset = offset_of(address);
  if (find(offset).size == 0) return false;
  if (stream == stream_) return true;
  Tracked& tracked = tracked_[offset];
  set_attention();
  if (tracked.pending) return false;
  if (std::find(tracked.streams.begin(), tracked.streams.end(), stream) == tracked.streams.end())
    tracked.streams.push_back(stream);
  return true;
}

// Some block of the heap is used by another stream, or was when it was freed: perhaps this one. Or memory comes in
// segments, or there is a plan, or there are exact bins.
bool Heap::free_attentively(Address address) {
  const Bytes offset = offset_of(address);
  const Found found = find(offset);
  if (found.size == 0) return false;
  auto entry = tracked_.empty() ? tracked_.end() : tracked_.find(offset);
  if (entry != tracked_.end() && entry->second.pending) return false;  // freed before
  if (entry != tracked_.end()) entry->second.shared_as = 0;
  if (entry != tracked_.end() && entry->second.streams.empty()) {
    tracked_.erase(entry);
    set_attention();
    entry = tracked_.end();
  }
  counts_.subtract(kind_of(found.size), found.requested, found.size);
  if (entry == tracked_.end()) {
    done_with(found);
  } else {
    for (Waiting* waiting : {&waiting_[kind_of(found.size)], &all_waiting_}) waiting->add(found.size);
    entry->second.pending = true;
    pending_bytes_.add(found.size);
    aside_bytes_ += static_cast<std::int64_t>(found.size);
    Pending pending;
    pending.offset = offset;
    pending.size = found.size;
    pending.streams = std::move(entry->second.streams);
    // An event recorded now would become part of the graph being captured: the free waits for the capture's end.
    if (shared_.captures.load(std::memory_order_relaxed) == 0) record_events(pending);
    pending_.push_back(std::move(pending));
    set_attention();
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
  EventHandle event = unused_event();
  if (event == 0 && shared_.driver.create_event(shared_.device, &event) != Status::ok) return 0;
  return event;
}

// 0 if there is none, and one has to be created.
EventHandle Heap::unused_event() {
  if (unused_events_.empty()) return 0;
  const EventHandle event = unused_events_.back();
  unused_events_.pop_back();
  return event;
}

void Heap::set_attention() {
  attention_ = static_cast<std::uint8_t>((segments_ == nullptr ? 0 : kTranslates) | (tracked_.empty() ? 0 : kTracks) |
                                         (pending_.empty() ? 0 : kWaits) | (planning_ == nullptr ? 0 : kPlans) |
                                         (whole_ ? kWhole : 0) | (exact_ == nullptr ? 0 : kKeeps) |
                                         (shared_.several_heaps.load(std::memory_order_relaxed) ? kPublishes : 0));
}

std::size_t Heap::poll_pending() noexcept {
  const Guard guard(*this);
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
  set_attention();
  return finished;
}

void Heap::finish(const Pending& pending) {
  pending_bytes_.subtract(pending.size);
  aside_bytes_ -= static_cast<std::int64_t>(pending.size);
  for (Waiting* waiting : {&waiting_[kind_of(pending.size)], &all_waiting_}) waiting->subtract(pending.size);
  const Found found = find(pending.offset);
  if (Observer* observer = shared_.observer.load(std::memory_order_acquire)) [[unlikely]]
    observer->free_completed(describe(pending.offset, found.size, found.requested));
  tracked_.erase(pending.offset);
  done_with(found);
}

std::size_t Heap::wait_pending() noexcept {
  if (shared_.captures.load(std::memory_order_relaxed) != 0) return 0;
  std::vector<EventHandle> events;
  std::uint64_t refused = 0;
  {
    const Guard guard(*this);
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
  const Guard guard(*this);
  for (Pending& pending : pending_)
    if (all_done && pending.refused != 0 && pending.refused <= refused) pending.streams.clear();
  return poll_pending_locked();
}

}  // namespace poolalloc
