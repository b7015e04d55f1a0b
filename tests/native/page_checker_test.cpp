// PageChecker's rules one by one, by hand and without an allocator: each broken once, and kept once by what makes the
// same use safe.
#include "page_checker.h"

#include <doctest/doctest.h>

#include "driver/model_driver.h"

using namespace poolalloc;

namespace {

using Rule = PageChecker::Rule;
constexpr StreamId kFirst = 16, kSecond = 32, kThird = 48;
constexpr Bytes kPage = kPageBytes;

ModelOptions lagging() {
  ModelOptions options;
  options.devices = 2;
  options.event_lag = 10;
  return options;
}

// Four pages of addresses over physical pages of the test's choice.
struct Rig {
  Rig() : model(lagging()), checker(model) {
    CHECK(checker.reserve(0, 4 * kPage, kPage, &base) == Status::ok);
    for (PhysicalHandle& handle : handles) CHECK(checker.create(0, kPage, &handle) == Status::ok);
    CHECK(checker.create_event(0, &event) == Status::ok);
  }
  Address page(unsigned index) const { return base + index * kPage; }
  void map(unsigned index, PhysicalHandle handle) {
    CHECK(checker.map(0, page(index), kPage, handle) == Status::ok);
    CHECK(checker.allow_access(0, page(index), kPage) == Status::ok);
  }
  PageChecker::Block block(unsigned index, StreamId stream, Bytes first = 0, Bytes end = kPage, PoolId pool = {}) {
    return checker.allocated(0, stream, page(index) + first, end - first, pool);
  }
  // A block of the first stream was used there and is free again.
  void use_and_free(unsigned index) {
    const PageChecker::Block name = block(index, kFirst);
    checker.used(name, kFirst);
    checker.freed(name);
  }
  void record(StreamId stream) { CHECK(checker.record_event(0, event, stream) == Status::ok); }
  // Only this rule is broken, or none.
  void check_broken(Rule rule) const {
    CHECK((checker.findings().size() == 1 && checker.findings()[0].rule == rule && checker.found(rule) > 0));
  }
  void check_sound() const { CHECK(checker.findings().empty()); }

  ModelDriver model;
  PageChecker checker;
  Address base = 0;
  PhysicalHandle handles[2] = {};
  EventHandle event = 0;
};

TEST_CASE("two blocks share a page only at different offsets") {
  Rig rig;
  rig.map(0, rig.handles[0]);
  rig.map(1, rig.handles[0]);  // an alias
  rig.block(0, kFirst, 0, 512);
  rig.block(1, kFirst, 512, 1024);
  rig.block(0, kFirst, 2048, 4096);
  rig.check_sound();
  rig.block(1, kFirst, 1024, 2560);
  rig.check_broken(Rule::one_owner);
}

TEST_CASE("a block that was freed has no memory any more") {
  Rig rig;
  rig.map(0, rig.handles[0]);
  rig.map(1, rig.handles[0]);
  rig.use_and_free(0);
  rig.block(1, kFirst);
  rig.check_sound();
}

TEST_CASE("a live block is mapped with access all the time") {
  {
    Rig rig;
    rig.map(0, rig.handles[0]);
    rig.block(0, kFirst, 0, 2 * kPage);  // its second page is missing
    rig.check_broken(Rule::reachable);
  }
  {
    Rig rig;
    CHECK(rig.checker.map(0, rig.page(0), kPage, rig.handles[0]) == Status::ok);
    rig.block(0, kFirst);
    rig.check_broken(Rule::reachable);
  }
  {
    Rig rig;
    rig.map(0, rig.handles[0]);
    rig.map(1, rig.handles[0]);
    rig.block(0, kFirst);
    CHECK(rig.checker.unmap(0, rig.page(1), kPage) == Status::ok);  // an alias that the block does not use
    rig.check_sound();
    CHECK(rig.checker.unmap(0, rig.page(0), kPage) == Status::ok);
    rig.check_broken(Rule::reachable);
  }
  {
    Rig rig;
    rig.map(0, rig.handles[0]);
    rig.block(0, kFirst);
    CHECK(rig.checker.destroy(0, rig.handles[0]) == Status::ok);
    rig.check_broken(Rule::reachable);
  }
}

TEST_CASE("a page goes to another stream behind an event that was seen completed") {
  Rig rig;
  rig.map(0, rig.handles[0]);
  rig.use_and_free(0);
  rig.record(kFirst);
  rig.model.advance(100);  // it is over, and nobody has asked
  {
    Rig other;
    other.map(0, other.handles[0]);
    other.use_and_free(0);
    other.model.advance(100);
    other.block(0, kSecond, kPage - 512, kPage);  // pages cross as a whole
    other.check_broken(Rule::stream_order);
  }
  CHECK(rig.checker.query_event(MayAsk::unchecked(), 0, rig.event) == Status::ok);
  rig.block(0, kSecond);
  rig.check_sound();
}

TEST_CASE("a stream of another device is another stream") {
  for (const DeviceIndex asked : {0, 1}) {
    Rig rig;
    rig.map(0, rig.handles[0]);
    const PageChecker::Block name = rig.block(0, kFirst);
    rig.checker.used(name, Stream{1, kFirst});
    rig.checker.freed(name);
    EventHandle event = 0;
    CHECK(rig.checker.create_event(asked, &event) == Status::ok);
    CHECK(rig.checker.record_event(asked, event, kFirst) == Status::ok);
    CHECK(rig.checker.synchronize_event(MayAsk::unchecked(), asked, event) == Status::ok);
    rig.block(0, kFirst);
    if (asked == 1)
      rig.check_sound();
    else
      rig.check_broken(Rule::stream_order);
  }
}

TEST_CASE("an event says nothing of later work") {
  Rig rig;
  rig.map(0, rig.handles[0]);
  rig.record(kFirst);
  rig.use_and_free(0);
  CHECK(rig.checker.synchronize_event(MayAsk::unchecked(), 0, rig.event) == Status::ok);
  rig.block(0, kSecond);
  rig.check_broken(Rule::stream_order);
}

TEST_CASE("an event that was asked too early says nothing") {
  Rig rig;
  rig.map(0, rig.handles[0]);
  rig.use_and_free(0);
  rig.record(kFirst);
  CHECK(rig.checker.query_event(MayAsk::unchecked(), 0, rig.event) == Status::not_ready);
  rig.block(0, kSecond);
  rig.check_broken(Rule::stream_order);
}

TEST_CASE("a wait on the device orders streams and is passed on") {
  Rig rig;
  rig.map(0, rig.handles[0]);
  rig.use_and_free(0);
  rig.record(kFirst);
  CHECK(rig.checker.stream_wait_event(0, kSecond, rig.event) == Status::ok);
  rig.record(kSecond);
  CHECK(rig.checker.stream_wait_event(0, kThird, rig.event) == Status::ok);
  rig.block(0, kThird);
  rig.check_sound();
  // The host waits for none of it.
  CHECK(rig.checker.destroy(0, rig.handles[0]) == Status::ok);
  CHECK(rig.checker.found(Rule::running_work) == 1);
}

TEST_CASE("a synchronized device has finished everything") {
  Rig rig;
  rig.map(0, rig.handles[0]);
  rig.use_and_free(0);
  CHECK(rig.checker.synchronize_device(NoCapture::unchecked(), 0) == Status::ok);
  rig.block(0, kSecond);
  rig.check_sound();
}

TEST_CASE("what another stream used is not reused at home before its event") {
  Rig rig;
  rig.map(0, rig.handles[0]);
  const PageChecker::Block name = rig.block(0, kFirst, 0, 1024);
  rig.checker.used(name, kSecond);
  rig.checker.freed(name);
  rig.block(0, kFirst, 1024, 2048);  // beside it
  rig.check_sound();
  rig.block(0, kFirst, 512, 1024);
  rig.check_broken(Rule::stream_order);
}

TEST_CASE("nothing is unmapped or destroyed under work") {
  {
    Rig rig;
    rig.map(0, rig.handles[0]);
    rig.use_and_free(0);
    CHECK(rig.checker.unmap(0, rig.page(0), kPage) == Status::ok);
    rig.check_broken(Rule::running_work);
  }
  {
    Rig rig;
    rig.map(0, rig.handles[0]);
    rig.map(1, rig.handles[0]);
    rig.use_and_free(0);
    CHECK(rig.checker.unmap(0, rig.page(1), kPage) == Status::ok);  // work does not go through the alias
    rig.check_sound();
    rig.record(kFirst);
    CHECK(rig.checker.synchronize_event(MayAsk::unchecked(), 0, rig.event) == Status::ok);
    CHECK(rig.checker.unmap(0, rig.page(0), kPage) == Status::ok);
    CHECK(rig.checker.destroy(0, rig.handles[0]) == Status::ok);
    rig.check_sound();
  }
  {
    Rig rig;
    Address segment = 0;
    CHECK(rig.checker.allocate_segment(0, kPage, &segment) == Status::ok);
    const PageChecker::Block name = rig.checker.allocated(0, kFirst, segment + 512, 512);
    rig.checker.used(name, kFirst);
    rig.checker.freed(name);
    CHECK(rig.checker.free_segment(0, segment) == Status::ok);
    rig.check_broken(Rule::running_work);
  }
}

// A graph that touched a block of its pool on page 0, freed again within the capture.
PageChecker::Graph capture(Rig& rig, PoolId pool) {
  const PageChecker::Graph graph = rig.checker.begin_capture(0, kFirst, pool);
  rig.map(0, rig.handles[0]);
  const PageChecker::Block name = rig.block(0, kFirst, 0, kPage, pool);
  rig.checker.used(name, kFirst);
  rig.checker.freed(name);
  rig.checker.end_capture(graph);
  return graph;
}

TEST_CASE("memory of a graph stays in its pool and in place until the graph is destroyed") {
  const PoolId pool{1, 0}, other{2, 0};
  {
    Rig rig;
    const PageChecker::Graph graph = capture(rig, pool);
    rig.checker.replayed(graph, kSecond);
    rig.block(0, kFirst, 0, 512, pool);  // another capture of the pool may use it, once the launch on kSecond is over
    CHECK((rig.checker.found(Rule::graph) == 0 && rig.checker.found(Rule::stream_order) == 1));
  }
  {
    Rig rig;
    capture(rig, pool);
    rig.map(1, rig.handles[0]);
    rig.block(1, kFirst, 0, 512, other);
    rig.check_broken(Rule::graph);
  }
  {
    Rig rig;
    const PageChecker::Graph graph = capture(rig, pool);
    CHECK(rig.checker.unmap(0, rig.page(0), kPage) == Status::ok);
    rig.check_broken(Rule::graph);
    rig.checker.replayed(graph, kSecond);
    CHECK(rig.checker.found(Rule::graph) == 2);
  }
  {
    Rig rig;
    const PageChecker::Graph graph = capture(rig, pool);
    rig.checker.destroyed(graph);
    CHECK(rig.checker.unmap(0, rig.page(0), kPage) == Status::ok);
    rig.check_sound();
  }
  {
    Rig rig;
    const PageChecker::Graph graph = capture(rig, pool);
    rig.checker.replayed(graph, kSecond);
    rig.checker.destroyed(graph);
    rig.record(kFirst);
    CHECK(rig.checker.synchronize_event(MayAsk::unchecked(), 0, rig.event) ==
          Status::ok);  // not the stream of the launch
    CHECK(rig.checker.unmap(0, rig.page(0), kPage) == Status::ok);
    rig.check_broken(Rule::running_work);
  }
}

TEST_CASE("what is known to be over is forgotten") {
  Rig rig;
  rig.map(0, rig.handles[0]);
  for (int round = 0; round < 100; ++round) {
    const PageChecker::Block name = rig.block(0, kFirst, 0, 512);
    rig.checker.used(name, kFirst);
    rig.checker.used(name, kSecond);
    rig.checker.freed(name);
    rig.record(kSecond);
    CHECK(rig.checker.synchronize_event(MayAsk::unchecked(), 0, rig.event) == Status::ok);
  }
  rig.check_sound();
  CHECK((rig.checker.blocks() == 0 && rig.checker.uses() <= 4));
}

}  // namespace
