#include "core/streams/uses.h"

#include <algorithm>
#include <iterator>

#include "core/base/check.h"

namespace poolalloc {

// --- blocks --------------------------------------------------------------------------------------------------------

bool Uses::use(Bytes offset, Stream stream) {
  Block& block = blocks_[offset];
  if (block.size != 0) return false;
  if (std::find(block.streams.begin(), block.streams.end(), stream) == block.streams.end())
    block.streams.push_back(stream);
  return true;
}

Uses::Queue& Uses::queue_of(Stream stream) {
  for (Queue& queue : queues_)
    if (queue.stream == stream) return queue;
  queues_.push_back({stream, {}, 0, 0});
  return queues_.back();
}

bool Uses::defer(Bytes offset, Bytes size) {
  full_ = false;
  const auto found = blocks_.find(offset);
  if (found == blocks_.end()) return false;
  Block& block = found->second;
  block.size = size;
  for (const Stream stream : block.streams) {
    Queue& queue = queue_of(stream);
    if (queue.batches.empty() || queue.batches.back().sealed) {
      queue.batches.emplace_back();
      queue.batches.back().number = ++batches_;
    }
    Batch& batch = queue.batches.back();
    batch.blocks.push_back(&*found);
    batch.bytes += size;
    ++block.waits;
    full_ |= batch.full();
  }
  block.streams = {};
  count_pending(pending_ + 1);
  return true;
}

// --- looking -------------------------------------------------------------------------------------------------------

bool Uses::next(Look& look, Call* call) {
  if (look.calls == 0) return false;
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    Queue& queue = queues_[(turn_ + i) % queues_.size()];
    if (queue.batches.empty()) continue;
    if (Batch& last = queue.batches.back();
        !last.recorded() && queue.recorded != look.number && (look.all || last.full())) {
      queue.recorded = look.number;
      last.sealed = true;  // what is freed from now on may lie behind the event
      *call = {queue.stream, take_event(queue.stream.device), last.number, true, {}};
    } else if (const Batch& first = queue.batches.front(); first.recorded() && (look.may_ask || first.event == 0) &&
                                                           queue.asked != look.number &&
                                                           (look.all || queue.recorded == look.number)) {
      *call = {queue.stream, first.event, first.number, false, first.place};
    } else {
      continue;
    }
    if (--look.calls == 0) turn_ = (turn_ + i + 1) % queues_.size();  // the next look goes on from here
    return true;
  }
  turn_ = queues_.empty() ? 0 : (turn_ + 1) % queues_.size();
  return false;
}

// Several threads may be looking: a batch that is recorded or gone by now needs nothing more.
void Uses::settle(const Look& look, const Call& call, Status status, std::vector<Done>* done) {
  Queue& queue = queue_of(call.stream);
  const auto batch = place_of(queue, call.batch);
  const bool there = batch != queue.batches.end();
  if (!call.record) {
    if (there && status == Status::ok) retire(queue, batch, done);
    if (status != Status::ok) queue.asked = look.number;
    if (there && status == Status::failed && batch->place.capture != 0) forget_places(queue);
  } else {
    const bool recorded = there && !batch->recorded() && status == Status::ok;
    if (recorded) {
      batch->place = call.place;
      batch->event = call.place.capture == 0 ? call.event : 0;
      join_unrecorded(queue, batch);
    } else if (there && !batch->recorded()) {
      batch->refused = status != Status::not_ready;
    }
    if (!recorded || call.place.capture != 0) give_event(call.stream.device, call.event);
  }
  drop_empty_queues();
}

Uses::Batches::iterator Uses::place_of(Queue& queue, std::uint64_t number) {
  const auto found = std::lower_bound(queue.batches.begin(), queue.batches.end(), number,
                                      [](const Batch& batch, std::uint64_t wanted) { return batch.number < wanted; });
  return found != queue.batches.end() && found->number == number ? found : queue.batches.end();
}

// What was freed before and could not be recorded then lies before the event as well.
void Uses::join_unrecorded(Queue& queue, const Batches::iterator& batch) {
  auto first = batch;
  while (first != queue.batches.begin() && !std::prev(first)->recorded()) {
    --first;
    batch->blocks.insert(batch->blocks.end(), first->blocks.begin(), first->blocks.end());
    batch->bytes += first->bytes;
  }
  queue.batches.erase(first, batch);
}

// They are recorded as others are when somebody looks next.
void Uses::forget_places(Queue& queue) {
  for (Batch& batch : queue.batches)
    if (batch.event == 0) batch.place = {};
}

void Uses::retire(Queue& queue, const Batches::iterator& batch, std::vector<Done>* done) {
  give_event(queue.stream.device, batch->event);
  for (Entry* entry : batch->blocks) {
    if (--entry->second.waits != 0) continue;
    const Done block{entry->first, entry->second.size};
    done->push_back(block);
    blocks_.erase(block.block);
    count_pending(pending_ - 1);
  }
  queue.batches.erase(batch);
}

void Uses::drop_empty_queues() {
  std::erase_if(queues_, [](const Queue& queue) { return queue.batches.empty(); });
}

// --- waiting -------------------------------------------------------------------------------------------------------

std::vector<Uses::Call> Uses::last_events() const {
  std::vector<Call> calls;
  for (const Queue& queue : queues_) {
    const auto last =
        std::find_if(queue.batches.rbegin(), queue.batches.rend(), [](const Batch& batch) { return batch.event != 0; });
    if (last != queue.batches.rend()) calls.push_back({queue.stream, last->event, last->number, false, {}});
  }
  return calls;
}

std::vector<Uses::Call> Uses::refused() const {
  std::vector<Call> calls;
  for (const Queue& queue : queues_)
    for (const Batch& batch : queue.batches)
      if (!batch.recorded() && batch.refused) calls.push_back({queue.stream, 0, batch.number, true, {}});
  return calls;
}

void Uses::passed(const Call& call, std::vector<Done>* done) {
  Queue& queue = queue_of(call.stream);
  if (const auto batch = place_of(queue, call.batch); batch != queue.batches.end()) retire(queue, batch, done);
  drop_empty_queues();
}

// --- events --------------------------------------------------------------------------------------------------------

EventHandle Uses::take_event(DeviceIndex device) {
  const auto found = std::find_if(unused_events_.rbegin(), unused_events_.rend(),
                                  [&](const auto& each) { return each.first == device; });
  if (found == unused_events_.rend()) return 0;
  const EventHandle event = found->second;
  unused_events_.erase(std::next(found).base());
  return event;
}

std::vector<std::pair<DeviceIndex, EventHandle>> Uses::release_events() {
  std::vector<std::pair<DeviceIndex, EventHandle>> events = std::move(unused_events_);
  unused_events_.clear();
  for (Queue& queue : queues_)
    for (Batch& batch : queue.batches)
      if (batch.event != 0) events.emplace_back(queue.stream.device, std::exchange(batch.event, 0));
  return events;
}

// --- figures -------------------------------------------------------------------------------------------------------

Bytes Uses::pending_bytes() const {
  Bytes bytes = 0;
  for (const auto& [offset, block] : blocks_) bytes += block.size;
  return bytes;
}

Bytes Uses::metadata_bytes() const {
  Bytes bytes = blocks_.size() * (sizeof(Entry) + 2 * sizeof(void*)) + blocks_.bucket_count() * sizeof(void*) +
                unused_events_.capacity() * sizeof(unused_events_[0]);
  for (const Queue& queue : queues_) {
    bytes += sizeof(Queue);
    for (const Batch& batch : queue.batches) bytes += sizeof(Batch) + batch.blocks.capacity() * sizeof(Entry*);
  }
  return bytes;
}

void Uses::validate() const {
  std::unordered_map<Bytes, std::uint32_t> waits;
  for (const Queue& queue : queues_) {
    POOLALLOC_ENSURE(!queue.batches.empty(), "a queue that is kept has somebody waiting in it");
    bool recorded = true;
    std::uint64_t number = 0;
    for (const Batch& batch : queue.batches) {
      POOLALLOC_ENSURE(batch.number > number, "batches stand in the order of their frees");
      POOLALLOC_ENSURE(recorded || !batch.recorded(), "recorded batches stand before the others");
      POOLALLOC_ENSURE(!batch.recorded() || batch.sealed, "nothing joins a batch behind its event");
      POOLALLOC_ENSURE(!batch.blocks.empty(), "a batch has blocks");
      recorded = batch.recorded();
      number = batch.number;
      for (const Entry* entry : batch.blocks) ++waits[entry->first];
    }
  }
  std::size_t pending = 0;
  for (const auto& [offset, block] : blocks_) {
    POOLALLOC_ENSURE((block.size != 0) == (block.waits != 0), "what is pending waits");
    POOLALLOC_ENSURE(block.size == 0 || block.streams.empty(), "what is pending waits in queues");
    const auto found = waits.find(offset);
    POOLALLOC_ENSURE(block.waits == (found != waits.end() ? found->second : 0),
                     "waits of a block = batches it stands in");
    pending += block.size != 0;
  }
  POOLALLOC_ENSURE(pending == pending_ && pending == pending_hint(), "pending blocks = blocks with waits");
}

}  // namespace poolalloc
