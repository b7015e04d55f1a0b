// One stream's memory: frees that wait for other streams, captures, frames on their way out, and what a refusing driver
// leaves.
#include "core/heap/heap.h"

#include <random>
#include <thread>

#include "core_rig.h"

using namespace rig;

namespace {

constexpr StreamId kOwn = 1;
constexpr StreamId kOther = 2;
constexpr StreamId kThird = 3;
constexpr Bytes kMiB = 1 << 20;

struct HeapRig {
  explicit HeapRig(std::uint64_t device_pages = 64, std::uint64_t event_lag = 0)
      : model(device_of(device_pages, event_lag)),
        driver(model),
        shared(driver, 0, addresses, gate),
        heap(shared, kOwn, PoolId{}, reserve(512 * kPage), 128 * kPage, 384 * kPage, growing("tight")) {
    shared.holdings.set_limit(device_pages * kPage);
  }
  ~HeapRig() {
    heap.retire();
    shared.destroy_spare();
    CHECK(model.violations() == 0);
    CHECK(model.used_bytes(0) == 0);
  }

  Address reserve(Bytes bytes) {
    Address address = 0;
    CHECK(driver.reserve(0, bytes, kPage, &address) == Status::ok);
    return address;
  }
  Address take(Bytes bytes) {
    Address address = 0;
    CHECK(heap.allocate(bytes, &address) == Status::ok);
    return address;
  }
  PhysicalHandle under(Address address) const {
    PhysicalHandle handle = 0;
    Bytes offset = 0;
    return model.physical(0, address, &handle, &offset) ? handle : 0;
  }
  // An event behind what is enqueued on a stream now.
  EventHandle mark(StreamId stream) {
    EventHandle event = 0;
    CHECK((model.create_event(0, &event) == Status::ok && model.record_event(0, event, stream) == Status::ok));
    return event;
  }
  bool done(EventHandle event) { return model.query_event(MayAsk::unchecked(), 0, event) == Status::ok; }
  void check() const {
    heap.validate();
    CHECK(model.violations() == 0);
    const HeapStats now = heap.stats();
    CHECK(static_cast<Bytes>(now.reserved.current) + shared.spare_bytes() == model.used_bytes(0));
  }
  // Whether one of the next blocks of this size is the one at `address`.
  bool hands_out(Address address, Bytes bytes) {
    std::vector<Address> taken;
    while (taken.size() < 4 && (taken.empty() || taken.back() != address)) taken.push_back(take(bytes));
    const bool found = taken.back() == address;
    for (Address each : taken) CHECK(heap.free(each));
    return found;
  }

  ModelDriver model;
  CountingDriver driver;
  AddressTable addresses;
  CaptureGate gate{driver};
  DeviceShared shared;
  Heap heap;
};

const Bytes kSizes[] = {100, 256 << 10, 300 << 10, 5 * kPage};  // two from slabs, two from the arena

TEST_CASE("a block freed on its own stream is reused at once") {
  HeapRig rig(64, 1000);
  for (Bytes bytes : kSizes) {
    const Address address = rig.take(bytes);
    CHECK(rig.heap.free(address));
    CHECK(rig.take(bytes) == address);
    rig.check();
  }
  CHECK(rig.driver.calls(DriverCall::synchronize_event) == 0);
}

TEST_CASE("a heap without large blocks places one after many that found no memory") {
  HeapRig rig(16);
  const Address small = rig.take(512);
  Address none = 0;
  for (int i = 0; i < 40; ++i) CHECK(rig.heap.allocate(17 * kPage, &none) == Status::out_of_memory);
  const Address large = rig.take(3 * kPage);
  CHECK(rig.under(large) != rig.under(small));
  CHECK(rig.heap.free(large));
  CHECK(rig.heap.free(small));
}

TEST_CASE("only starts of live blocks are freed or recorded") {
  HeapRig rig;
  for (Bytes bytes : kSizes) {
    const Address address = rig.take(bytes);
    const HeapStats before = rig.heap.stats();
    for (Address wrong : {address + 1, address + 512, address + bytes - 1, address + 100 * kPage}) {
      CHECK(!rig.heap.free(wrong));
      CHECK(!rig.heap.record_stream(wrong, {0, kOther}));
    }
    CHECK(rig.heap.stats().frees == before.frees);
    CHECK(rig.heap.free(address));
    CHECK(!rig.heap.free(address));
    CHECK(!rig.heap.record_stream(address, {0, kOther}));
    rig.check();
  }
}

TEST_CASE("a block used elsewhere is pending until every such stream is done") {
  for (Bytes bytes : kSizes) {
    HeapRig rig(64, 10);
    rig.model.set_stream_lag(0, kThird, 30);
    const Address address = rig.take(bytes);
    CHECK((rig.heap.record_stream(address, {0, kOther}) && rig.heap.record_stream(address, {0, kThird})));
    CHECK(rig.heap.record_stream(address, {0, kOther}));
    CHECK(rig.heap.free(address));
    CHECK((!rig.heap.free(address) &&
           !rig.heap.record_stream(address, {0, kOther})));  // a second free, though it is pending
    const HeapStats pending = rig.heap.stats();
    CHECK((pending.requested.current == 0 && pending.live.current == 0));
    CHECK(pending.pending.current == static_cast<std::int64_t>(rig.heap.block(address)->rounded));
    for (std::uint64_t now : {0, 10, 19}) {
      rig.model.advance(now == 0 ? 0 : now == 10 ? 10 : 19);
      rig.heap.poll_pending();
      CHECK(!rig.hands_out(address, bytes));
      rig.check();
    }
    rig.model.advance(1);
    CHECK(rig.heap.poll_pending() == 1);
    CHECK((rig.heap.stats().pending.current == 0 && rig.heap.stats().pending_completed == 1));
    CHECK(!rig.heap.block(address));
    CHECK(rig.hands_out(address, bytes));
    rig.check();
  }
}

TEST_CASE("a use by the own stream delays nothing") {
  HeapRig rig(64, 1000);
  const Address address = rig.take(kMiB);
  CHECK(rig.heap.record_stream(address, {0, kOwn}));
  CHECK(rig.heap.free(address));
  CHECK(rig.take(kMiB) == address);
}

TEST_CASE("an address with uses recorded starts afresh when handed out again") {
  HeapRig rig(64, 10);
  const Address address = rig.take(kMiB);
  CHECK(rig.heap.record_stream(address, {0, kOther}));
  CHECK(rig.heap.free(address));
  rig.model.advance(10);
  rig.heap.poll_pending();
  CHECK(rig.take(kMiB) == address);
  CHECK(rig.heap.free(address));
  CHECK(rig.take(kMiB) == address);  // no use this time, so no wait
  rig.check();
}

TEST_CASE("completed pending frees are used before the heap grows") {
  HeapRig rig(64, 10);
  const Address address = rig.take(8 * kPage);
  CHECK(rig.heap.record_stream(address, {0, kOther}));
  CHECK(rig.heap.free(address));
  rig.model.advance(10);
  const std::uint64_t created = rig.driver.calls(DriverCall::create);
  rig.take(7 * kPage);
  CHECK(rig.driver.calls(DriverCall::create) == created);
  rig.check();
}

TEST_CASE("waiting finishes what is pending") {
  HeapRig rig(64, 10);
  for (int i = 0; i < 3; ++i) {
    const Address address = rig.take(kMiB);
    CHECK(rig.heap.record_stream(address, {0, kOther + static_cast<StreamId>(i)}));
    CHECK(rig.heap.free(address));
  }
  CHECK((rig.heap.wait_pending() == 3 && rig.heap.wait_pending() == 0));
  CHECK((rig.heap.stats().pending.current == 0 && rig.heap.live_blocks() == 0));
  rig.check();
}

TEST_CASE("events are reused") {
  HeapRig rig(64, 1);
  for (int i = 0; i < 50; ++i) {
    const Address address = rig.take(kMiB);
    CHECK(rig.heap.record_stream(address, {0, kOther}));
    CHECK(rig.heap.free(address));
    rig.model.advance(1);
    rig.heap.poll_pending();
  }
  CHECK((rig.driver.calls(DriverCall::create_event) <= 3 && rig.driver.calls(DriverCall::record_event) >= 50));
}

// Whatever the driver refuses, a block is never handed out before the work that uses it is done.
TEST_CASE("a refused event call never lets a block go early") {
  for (DriverCall call :
       {DriverCall::create_event, DriverCall::record_event, DriverCall::query_event, DriverCall::synchronize_event}) {
    for (Status status : {Status::failed, Status::out_of_memory}) {
      for (bool wait : {false, true}) {
        HeapRig rig(64, 10);
        const Address address = rig.take(kMiB);
        CHECK(rig.heap.record_stream(address, {0, kOther}));
        const EventHandle work = rig.mark(kOther);
        rig.model.fail(call, 1, status);
        CHECK(rig.heap.free(address));
        if (wait)
          rig.heap.wait_pending();
        else
          rig.heap.poll_pending();
        CHECK((rig.done(work) || rig.heap.stats().pending.current != 0));
        rig.check();
        for (int i = 0; i < 3; ++i) {  // and in the end it comes back
          rig.model.advance(10);
          rig.heap.wait_pending();
        }
        CHECK(rig.heap.stats().pending.current == 0);
        CHECK(rig.hands_out(address, kMiB));
        rig.check();
      }
    }
  }
}

TEST_CASE("frames leave when the work before has completed") {
  HeapRig rig(64, 10);
  const Address address = rig.take(8 * kPage);
  CHECK(rig.heap.free(address));
  const EventHandle work = rig.mark(kOwn);
  CHECK(rig.heap.reclaim_waiting(3) == 3 * kPage);
  CHECK(rig.done(work));
  CHECK((rig.shared.spare_bytes() == 3 * kPage && rig.heap.stats().idle.current == 5 * std::int64_t{kPage}));
  rig.check();
  CHECK((rig.heap.reclaim_waiting(~0u) == 5 * kPage && rig.heap.reclaim_waiting(~0u) == 0 && !rig.heap.mapped()));
  rig.check();
}

TEST_CASE("a refused call never lets a frame leave early or get lost") {
  for (DriverCall call : {DriverCall::create_event, DriverCall::record_event, DriverCall::synchronize_event,
                          DriverCall::unmap, DriverCall::destroy}) {
    HeapRig rig(64, 10);
    const Address address = rig.take(4 * kPage);
    const PhysicalHandle handle = rig.under(address);
    CHECK(rig.heap.free(address));
    const EventHandle work = rig.mark(kOwn);
    rig.model.fail(call, 1, Status::failed);
    rig.heap.reclaim_waiting(~0u);
    CHECK((rig.done(work) || rig.under(address) == handle));
    rig.shared.destroy_spare();
    rig.heap.validate();
    CHECK(rig.model.violations() == 0);
    CHECK(rig.shared.holdings.reserved().current == static_cast<std::int64_t>(rig.model.used_bytes(0)));
    for (int i = 0; i < 2; ++i) {  // nothing is lost for good
      rig.heap.reclaim_waiting(~0u);
      rig.shared.destroy_spare();
    }
    CHECK(rig.model.used_bytes(0) == 0);
    rig.take(8 * kPage);
    rig.check();
  }
}

// What a capture forbids is a violation of the model, which check() and the rig's end look for.
TEST_CASE("during a capture nothing is unmapped and its thread asks for nothing") {
  HeapRig rig(16, 10);
  const Address used = rig.take(kMiB);
  const Address idle = rig.take(4 * kPage);
  CHECK(rig.heap.record_stream(used, {0, kOther}));
  CHECK(rig.heap.free(idle));
  rig.gate.begin(0);
  rig.model.begin_capture(0, kOwn);
  CHECK(rig.heap.free(used));
  CHECK((rig.heap.poll_pending() == 0 && rig.heap.wait_pending() == 0 && rig.heap.reclaim_waiting(~0u) == 0));
  rig.model.advance(100);
  const Address again = rig.take(4 * kPage);
  Address none = 0;
  CHECK(rig.heap.allocate(40 * kPage, &none) == Status::out_of_memory);
  CHECK(rig.heap.allocate(14 * kPage, &none) == Status::out_of_memory);
  rig.check();
  rig.model.end_capture(0, kOwn);
  rig.gate.end(0);
  CHECK(rig.heap.stats().pending.current != 0);
  CHECK(rig.heap.poll_pending() == 1);
  CHECK(rig.heap.free(again));
  rig.check();
}

TEST_CASE("a placement refused during a capture unmaps nothing") {
  for (DriverCall call : {DriverCall::create, DriverCall::map, DriverCall::allow_access}) {
    for (std::uint64_t nth : {1, 3}) {
      HeapRig rig(16);
      rig.take(kMiB);
      rig.gate.begin(0);
      rig.model.begin_capture(0, kOwn);
      if (call != DriverCall::allow_access || nth == 1) rig.model.fail(call, nth, Status::failed);
      Address none = 0;
      const Status status = rig.heap.allocate(6 * kPage, &none);
      CHECK((status == Status::failed || (call == DriverCall::allow_access && nth == 3)));
      CHECK(rig.model.violations() == 0);
      rig.take(4 * kPage);
      rig.check();
      rig.model.end_capture(0, kOwn);
      rig.gate.end(0);
      rig.check();
    }
  }
}

TEST_CASE("a full device is out of memory and leaves nothing changed") {
  HeapRig rig(16);
  const Address address = rig.take(10 * kPage);
  const HeapStats before = rig.heap.stats();
  const Bytes used = rig.model.used_bytes(0);
  Address none = 0;
  for (Bytes bytes : {7 * kPage, 17 * kPage, 1000 * kPage, Bytes{1} << 45, ~Bytes{0}})
    CHECK(rig.heap.allocate(bytes, &none) != Status::ok);
  const HeapStats after = rig.heap.stats();
  CHECK((after.live.current == before.live.current && after.live.peak == before.live.peak));
  CHECK((after.resident.peak == before.resident.peak && after.reserved.current == before.reserved.current));
  CHECK((after.allocations == before.allocations && after.mappings == before.mappings));
  CHECK(rig.model.used_bytes(0) == used);  // no page was made for a block that does not fit
  rig.check();
  rig.take(6 * kPage);
  CHECK(rig.heap.free(address));
  rig.check();
}

TEST_CASE("totals of the device follow within the published step") {
  HeapRig rig;
  rig.shared.several_heaps = true;
  rig.heap.publish_from_now();
  Bytes requested = 0;
  for (Bytes bytes : kSizes) {
    rig.take(bytes);
    requested += bytes;
    const std::int64_t lag = static_cast<std::int64_t>(requested) - rig.shared.requested.current.load();
    CHECK((lag >= 0 && lag < Heap::kPublishBytes));
  }
  rig.heap.publish();
  CHECK(rig.shared.requested.current.load() == static_cast<std::int64_t>(requested));
  CHECK(rig.shared.live.current.load() == rig.heap.stats().live.current);
  CHECK(rig.shared.resident.current.load() == rig.heap.stats().resident.current);
}

TEST_CASE("an address inside a block finds it") {
  HeapRig rig;
  for (Bytes bytes : kSizes) {
    const Address address = rig.take(bytes);
    for (Address inside : {address, address + 1, address + bytes - 1}) {
      const auto found = rig.heap.block(inside);
      CHECK((found && found->address == address && found->rounded >= bytes));
    }
    const Bytes rounded = rig.heap.block(address)->rounded;
    CHECK(rig.heap.free(address));
    CHECK((!rig.heap.block(address) && !rig.heap.block(address + rounded - 1)));
  }
}

// --- a free that is put off ----------------------------------------------------------------------------------------

TEST_CASE("a block asked for again at once comes back as it was") {
  for (Bytes bytes : kSizes) {
    HeapRig rig;
    const Address below = rig.take(bytes), address = rig.take(bytes), above = rig.take(bytes);
    rig.take(bytes);
    const PhysicalHandle handle = rig.under(address);
    const std::uint64_t allocations = rig.heap.stats().allocations;
    for (Bytes asked : {bytes, bytes - 1, bytes}) {
      CHECK(rig.heap.free(address));
      CHECK(rig.take(asked) == address);
      CHECK(rig.heap.block(address)->requested == asked);
    }
    CHECK(rig.under(address) == handle);
    CHECK(rig.heap.stats().allocations == allocations + 3);
    for (Address each : {below, address, above}) CHECK(rig.heap.free(each));
    rig.check();
  }
}

TEST_CASE("whoever looks finds the last free finished") {
  for (Bytes bytes : kSizes) {
    HeapRig rig;
    const Address address = rig.take(bytes);
    const auto freed = [&] {
      CHECK(rig.heap.free(address));
      return true;
    };
    const auto again = [&] { CHECK(rig.take(bytes) == address); };
    CHECK((freed() && rig.heap.stats().resident.current == 0 && rig.heap.stats().live.current == 0));
    again();
    CHECK((freed() && !rig.heap.free(address) && !rig.heap.record_stream(address, {0, kOther})));
    again();
    CHECK((freed() && !rig.heap.block(address) && rig.heap.layout().blocks.empty()));
    again();
    CHECK((freed() && rig.heap.reclaim_waiting(~0u) == round_up(bytes, kPage)));
    rig.check();
  }
}

TEST_CASE("a block of another size may lie where one was freed last") {
  HeapRig rig;
  const Address address = rig.take(4 * kPage);
  rig.take(kPage);
  CHECK(rig.heap.free(address));
  CHECK(rig.take(3 * kPage) >= address);
  CHECK(rig.heap.stats().resident.current == static_cast<std::int64_t>(4 * kPage));
  rig.check();
}

// The same program twice: one that looks at the figures all the time, so that no free stays put off, and one that does
// not. Small blocks also come to lie in the same places.
TEST_CASE("peaks are as if no free was put off") {
  HeapRig looked, not_looked;
  std::vector<std::pair<Address, Address>> live;
  std::mt19937_64 random(7);
  const Bytes sizes[] = {100, 600, 20 << 10, 100 << 10, 256 << 10};
  for (int step = 0; step < 4000; ++step) {
    if (live.empty() || random() % (live.size() + 8) < 8) {
      const Bytes bytes = sizes[random() % std::size(sizes)];
      live.emplace_back(looked.take(bytes), not_looked.take(bytes));
      CHECK(live.back().first - looked.heap.base() == live.back().second - not_looked.heap.base());
    } else {
      const std::size_t place = random() % live.size();
      CHECK((looked.heap.free(live[place].first) && not_looked.heap.free(live[place].second)));
      live[place] = live.back();
      live.pop_back();
    }
    looked.heap.validate();
  }
  const HeapStats a = looked.heap.stats(), b = not_looked.heap.stats();
  for (const auto counter : {&HeapStats::requested, &HeapStats::live, &HeapStats::resident, &HeapStats::reserved}) {
    CHECK(((a.*counter).current == (b.*counter).current && (a.*counter).peak == (b.*counter).peak));
  }
  for (const auto part : {&HeapStats::all, &HeapStats::small})
    CHECK(((a.*part).unused.current == (b.*part).unused.current && (a.*part).unused.peak == (b.*part).unused.peak &&
           (a.*part).reserved.peak == (b.*part).reserved.peak));
}

// Of many heaps in one process, late ones have few addresses for slabs.
TEST_CASE("small blocks go to the arena where slabs have no addresses left") {
  HeapRig rig;
  const Address base = rig.reserve(64 * kPage);
  {
    Heap heap(rig.shared, 2, PoolId{}, base, 2 * kPage, 62 * kPage, growing("tight"));
    std::vector<Address> blocks(90);
    for (Address& block : blocks) CHECK(heap.allocate(100 << 10, &block) == Status::ok);
    const HeapStats stats = heap.stats();
    CHECK((stats.arena_rounded != 0 && stats.all.blocks.current == 90));
    CHECK((stats.large.blocks.current != 0 && static_cast<Bytes>(stats.large.held.current) == stats.arena_rounded));
    heap.validate();
    CHECK(rig.model.used_bytes(0) <= 6 * kPage);
    CHECK(heap.block(blocks.back() + 5)->requested == 100 << 10);
    for (const Address block : blocks) CHECK((heap.free(block) && !heap.free(block)));
    CHECK((heap.stats().requested.current == 0 && heap.stats().resident.current == 0));
    heap.validate();
    heap.retire();
  }
}

}  // namespace
