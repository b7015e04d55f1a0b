// Deferred frees in the queues of foreign streams: order, batches, bounded looks.
#include "core/streams/uses.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>

using namespace poolalloc;

namespace {

constexpr Stream kSide{0, 7}, kAbroad{1, 7};
constexpr Bytes kSmall = 512, kLarge = Bytes{2} << 20;

// Streams whose work is over up to a time, and the calls that a look made.
struct Rig {
  std::size_t look(bool may_ask = true) { return run(uses.look(may_ask)); }
  std::size_t look_at_full() { return run(uses.look_at_full(true)); }
  std::size_t run(Uses::Look look) {
    done.clear();
    records = queries = 0;
    for (Uses::Call call; uses.next(look, &call);) uses.settle(look, call, answer(&call), &done);
    uses.validate();
    return done.size();
  }
  Status answer(Uses::Call* call) {
    if (!call->record && call->place.capture != 0) {
      ++queries;
      return call->place.capture != capture   ? Status::failed
             : joined >= call->place.nodes[0] ? Status::ok
                                              : Status::not_ready;
    }
    if (!call->record) {
      ++queries;
      return recorded.at(call->event) <= over[call->stream.device] ? Status::ok : Status::not_ready;
    }
    ++records;
    if (capture != 0) {
      call->place = {capture, {now}};
      return Status::ok;
    }
    if (refusal != Status::ok) return refusal;
    if (call->event == 0) call->event = ++last_event;
    CHECK(device_of.emplace(call->event, call->stream.device).first->second == call->stream.device);
    recorded[call->event] = now;
    return Status::ok;
  }
  void free(Bytes block, Bytes size, std::initializer_list<Stream> streams) {
    for (const Stream stream : streams) CHECK(uses.use(block, stream));
    CHECK(uses.defer(block, size));
    ++now;
  }

  Uses uses;
  std::map<EventHandle, std::uint64_t> recorded;
  std::map<EventHandle, DeviceIndex> device_of;
  std::map<DeviceIndex, std::uint64_t> over;
  std::vector<Uses::Done> done;
  EventHandle last_event = 0;
  std::uint64_t now = 0;
  std::size_t records = 0, queries = 0;
  Status refusal = Status::ok;
  std::uint64_t capture = 0, joined = 0;  // the capture that every stream is in; what the heap's own lies behind
};

TEST_CASE("a block without uses is done at once") {
  Uses uses;
  CHECK((!uses.defer(0, kSmall) && uses.empty()));
  CHECK((uses.use(0, kSide) && uses.use(0, kSide) && uses.used(0) && !uses.pending(0)));
  CHECK((uses.defer(0, kSmall) && uses.pending(0) && !uses.use(0, kAbroad)));
  uses.validate();
}

TEST_CASE("small frees share an event and a large one has its own") {
  Rig rig;
  for (Bytes i = 0; i < Uses::kBatchBlocks - 1; ++i) {
    rig.free(i * kSmall, kSmall, {kSide});
    CHECK(!rig.uses.full());
  }
  rig.free(1 << 20, kSmall, {kSide});
  CHECK(rig.uses.full());
  rig.look_at_full();
  CHECK((rig.records == 1 && rig.queries == 1));
  rig.free(1 << 24, kLarge, {kSide});
  CHECK(rig.uses.full());
  rig.over[0] = rig.now;
  CHECK((rig.look_at_full() == Uses::kBatchBlocks + 1 && rig.records == 1 && rig.last_event == 2));
  CHECK(rig.uses.empty());
}

TEST_CASE("a look stops at the first batch that is not over") {
  Rig rig;
  for (Bytes i = 0; i < 300; ++i) {
    rig.free(i * kLarge, kLarge, {kSide});
    rig.look_at_full();
  }
  CHECK((rig.uses.pending() == 300 && rig.last_event == 300));
  CHECK((rig.look() == 0 && rig.queries == 1));
  rig.over[0] = 10;
  CHECK((rig.look() == 10 && rig.queries == 11));
  CHECK((rig.done.front().block == 0 && rig.done.back().block == 9 * kLarge));  // in the order of their frees
  rig.over[0] = rig.now;
  CHECK(rig.look() == Uses::kCalls);  // no look has more
}

TEST_CASE("frees retire what is over as fast as they add") {
  Rig rig;
  std::size_t most = 0;
  for (Bytes i = 0; i < 100'000; ++i) {
    rig.free(i % 4096 * kSmall, kSmall, {kSide});
    rig.over[0] = rig.now;
    if (rig.uses.full()) rig.look_at_full();
    most = std::max(most, rig.uses.pending());
  }
  CHECK((most <= Uses::kBatchBlocks && rig.last_event <= 2));
}

TEST_CASE("a block waits for every stream and a stream is one of a device") {
  Rig rig;
  rig.free(0, kLarge, {kSide, kAbroad});
  rig.free(kLarge, kLarge, {kAbroad});
  CHECK((rig.look() == 0 && rig.records == 2));
  rig.over[0] = rig.now;
  CHECK(rig.look() == 0);
  rig.over[1] = 2;
  CHECK((rig.look() == 2 && rig.uses.empty()));
  const EventHandle here = rig.uses.take_event(0), there = rig.uses.take_event(1);
  CHECK((rig.device_of.at(here) == 0 && rig.device_of.at(there) == 1));
}

TEST_CASE("no queue keeps another waiting") {
  Rig rig;
  for (Bytes i = 0; i < 200; ++i) rig.free(i * kLarge, kLarge, {{0, 100 + i}});
  rig.free(200 * kLarge, kLarge, {kAbroad});
  rig.over[1] = rig.now + 1;
  std::size_t looks = 0;
  for (; rig.uses.pending(200 * kLarge); ++looks) rig.look();
  CHECK(looks <= 201);
}

TEST_CASE("who may not ask records at most") {
  Rig rig;
  rig.over[0] = 1000;
  rig.free(0, kLarge, {kSide});
  CHECK((rig.look(false) == 0 && rig.records == 1 && rig.queries == 0));
  CHECK(rig.look() == 1);
}

TEST_CASE("what could not be recorded is recorded later or waited for") {
  Rig rig;
  rig.refusal = Status::not_ready;  // the stream is being captured
  rig.free(0, kLarge, {kSide});
  CHECK((rig.look() == 0 && rig.uses.refused().empty()));
  rig.free(kLarge, kLarge, {kSide});
  CHECK((rig.look() == 0 && rig.records == 1));
  rig.refusal = Status::ok;
  rig.over[0] = 1;
  CHECK((rig.look() == 0 && rig.records == 1));  // one event behind both
  rig.refusal = Status::failed;
  rig.free(2 * kLarge, kLarge, {kSide});
  CHECK(rig.look() == 0);
  const auto refused = rig.uses.refused();
  CHECK(refused.size() == 1);
  rig.free(3 * kLarge, kLarge, {kSide});  // after the wait began: not covered by it
  std::vector<Uses::Done> done;
  rig.uses.passed(refused[0], &done);
  CHECK((done.size() == 1 && done[0].block == 2 * kLarge && done[0].size == kLarge));
  CHECK((rig.uses.last_events().size() == 1 && rig.uses.pending() == 3));
  rig.uses.validate();
}

// Inside a captured graph a place stands for the event; when the capture is over, an event does.
TEST_CASE("a capture that joins a stream lets go of what it used") {
  Rig rig;
  rig.capture = 1;
  rig.free(0, kLarge, {kSide});
  CHECK((rig.look(false) == 0 && rig.records == 1 && rig.queries == 1));
  rig.free(kLarge, kLarge, {kSide});
  CHECK(rig.look(false) == 0);
  rig.joined = 1;
  CHECK((rig.look(false) == 1 && rig.done[0].block == 0 && rig.uses.last_events().empty()));
  rig.capture = 0;  // it ends without having joined the second
  rig.over[0] = 0;
  CHECK((rig.look() == 0 && rig.last_event == 1));
  rig.over[0] = rig.now;
  CHECK((rig.look() == 1 && rig.uses.empty()));
}

// Two threads look at once: each sees a call of the other as somebody else's.
TEST_CASE("an answer that comes late changes nothing") {
  Rig rig;
  rig.free(0, kLarge, {kSide});
  rig.free(kLarge, kLarge, {kSide});
  rig.look();
  rig.over[0] = rig.now;
  Uses::Look late = rig.uses.look(true);
  Uses::Call asked;
  CHECK((rig.uses.next(late, &asked) && !asked.record));
  CHECK(rig.look() == 2);
  rig.free(2 * kLarge, kLarge, {kSide});
  std::vector<Uses::Done> done;
  rig.uses.settle(late, asked, Status::ok, &done);
  CHECK((done.empty() && rig.uses.pending() == 1));
  rig.uses.validate();
}

}  // namespace
