// Blocks that other streams use: record_stream, and frees that wait for those streams (uses.h).
#include <algorithm>

#include "core/heap/heap.h"

namespace poolalloc {

bool Heap::record_stream(Address address, Stream stream) noexcept {
  const Guard guard(*this);
  const Bytes offset = offset_of(address);
  if (find(offset).size == 0) return false;
  if (stream == home()) return !uses_.pending(offset);
  const bool live = uses_.use(offset, stream);
  set_attention();
  return live;
}

// Some block of the heap is used by another stream, or was when it was freed: perhaps this one. Or memory comes in
// segments, or there is a plan, or there are exact bins.
bool Heap::free_attentively(Address address) {
  const Bytes offset = offset_of(address);
  const Found found = find(offset);
  if (found.size == 0 || uses_.pending(offset)) return false;  // freed before
  if (!names_.empty() && names_.erase(offset) != 0) set_attention();
  counts_.subtract(kind_at(offset), found.requested, found.size);
  if (uses_.defer(offset, found.size))
    defer(offset, found.size);
  else
    done_with(found);
  publish_if_due();
  return true;
}

void Heap::defer(Bytes offset, Bytes size) {
  for (Waiting* waiting : {&waiting_[kind_at(offset)], &all_waiting_}) waiting->add(size);
  pending_bytes_.add(size);
  aside_bytes_ += static_cast<std::int64_t>(size);
  shared_.deferred.fetch_add(1, std::memory_order_relaxed);
  set_attention();
  if (uses_.full()) look(uses_.look_at_full(shared_.gate.may_ask().has_value()));
}

void Heap::set_attention() {
  attention_ = static_cast<std::uint8_t>(
      (segments_ == nullptr ? 0 : kTranslates) | (uses_.empty() && names_.empty() ? 0 : kTracks) |
      (uses_.pending() == 0 ? 0 : kWaits) | (planning_ == nullptr ? 0 : kPlans) | (whole_ || asleep_ ? kSpecial : 0) |
      (exact_ == nullptr ? 0 : kKeeps) | (shared_.several_heaps.load(std::memory_order_relaxed) ? kPublishes : 0));
}

// --- looks -------------------------------------------------------------------------------------------------------

// On the device of the stream that uses the block. Where the driver refuses to record an event, the stream may be gone,
// but not its work: it is tried again at the next look, and wait_pending waits for the whole device.
Status Heap::make_call(Uses::Call* call, const MayAsk* token) {
  Driver& driver = shared_.driver;
  if (!call->record && call->place.capture != 0) return driver.capture_behind(shared_.device, stream_, call->place);
  if (!call->record) return driver.query_event(*token, call->stream.device, call->event);
  if (call->event == 0 && driver.create_event(call->stream.device, &call->event) != Status::ok) return Status::failed;
  const Status status = shared_.gate.record_behind(call->stream, call->event);
  if (status == Status::not_ready && shared_.gate.reuse() &&
      driver.capture_place(call->stream.device, call->stream.id, &call->place) == Status::ok)
    return Status::ok;
  return status;
}

// With the lock held: by a thread that serves this stream.
std::size_t Heap::look(Uses::Look look) {
  const auto token = shared_.gate.may_ask();
  look.may_ask &= token.has_value();
  std::vector<Uses::Done> done;
  for (Uses::Call call; uses_.next(look, &call);)
    uses_.settle(look, call, make_call(&call, token ? &*token : nullptr), &done);
  return finish(done);
}

std::size_t Heap::poll_pending_locked() { return uses_.pending() == 0 ? 0 : look(uses_.look(true)); }

std::size_t Heap::poll_pending() noexcept {
  if (!has_pending()) return 0;
  const auto token = shared_.gate.may_ask();
  std::size_t finished = 0;
  std::optional<Uses::Look> look;
  for (Uses::Call call;;) {
    {
      const Guard guard(*this);
      if (!look) look = uses_.look(token.has_value());
      if (!uses_.next(*look, &call)) return finished;
    }
    const Status status = make_call(&call, token ? &*token : nullptr);
    const Guard guard(*this);
    std::vector<Uses::Done> done;
    uses_.settle(*look, call, status, &done);
    finished += finish(done);
  }
}

// With the lock held, as the next.
std::size_t Heap::finish(const std::vector<Uses::Done>& done) {
  if (done.empty()) return 0;
  for (const auto& [offset, size] : done) {
    pending_bytes_.subtract(size);
    aside_bytes_ -= static_cast<std::int64_t>(size);
    for (Waiting* waiting : {&waiting_[kind_at(offset)], &all_waiting_}) waiting->subtract(size);
    const Found found = find(offset);
    if (Observer* observer = shared_.observer.load(std::memory_order_acquire)) [[unlikely]] {
      BlockInfo block = describe(offset, found.size, found.requested);
      block.pending = block.used_elsewhere = true;  // until now
      observer->free_completed(block);
    }
    done_with(found);
  }
  shared_.deferred.fetch_sub(static_cast<std::int64_t>(done.size()), std::memory_order_relaxed);
  pending_completed_ += done.size();
  set_attention();
  return done.size();
}

// Events first, then the devices of streams behind which none could be recorded. Work on a stream that is being
// captured has not been enqueued: what waits for it stays.
std::size_t Heap::wait_pending() noexcept {
  const auto token = shared_.gate.may_ask();
  if (!token || !has_pending()) return 0;
  std::size_t finished = poll_pending();
  std::vector<Uses::Call> events, refused;
  {
    const Guard guard(*this);
    events = uses_.last_events();
    refused = uses_.refused();
  }
  if (events.empty() && refused.empty()) return finished;
  waits_.fetch_add(1, std::memory_order_relaxed);
  // Another thread may finish these frees meanwhile and reuse an event: then this waits longer, never shorter.
  for (const Uses::Call& call : events) shared_.driver.synchronize_event(*token, call.stream.device, call.event);
  for (const Uses::Call& call : refused) {
    const DeviceIndex device = call.stream.device;
    const auto alone = shared_.gate.no_capture(device);
    if (!alone || shared_.driver.synchronize_device(*alone, device) != Status::ok) continue;
    const Guard guard(*this);
    std::vector<Uses::Done> done;
    uses_.passed(call, &done);
    finished += finish(done);
  }
  for (std::size_t more = 1; more != 0; finished += more) more = poll_pending();
  return finished;
}

}  // namespace poolalloc
