// Plans: a cursor that finds its place again, blocks that lie only where nothing else does, and a heap that serves
// requests from a plan and everything else as without one.
#include "core/allocator.h"
#include "core/placement/planned_blocks.h"
#include "core/plans/plan_cursor.h"
#include "core_rig.h"
#include "stress_program.h"

using namespace rig;

namespace {

constexpr Bytes kMiB = 1 << 20;
constexpr Bytes kNowhere = PlannedRequest::kNowhere;

// A beginning, then a cycle; each request is its size in MiB, and lies behind the one before it.
StreamPlan plan_of(const std::vector<Bytes>& beginning, const std::vector<Bytes>& cycle) {
  StreamPlan plan;
  for (const std::vector<Bytes>* part : {&beginning, &cycle})
    for (const Bytes size : *part) {
      plan.requests.push_back({size * kMiB, plan.height});
      plan.height += size * kMiB;
    }
  plan.first = static_cast<std::uint32_t>(beginning.size());
  plan.period = static_cast<std::uint32_t>(cycle.size());
  return plan;
}

// 1, 2, 3, ... so that every place is known by its sizes.
std::vector<Bytes> numbers(Bytes first, std::size_t count) {
  std::vector<Bytes> result;
  for (std::size_t i = 0; i < count; ++i) result.push_back(first + i);
  return result;
}

Bytes ask(PlanCursor& cursor, Bytes size) {
  const Bytes found = cursor.next(size * kMiB);
  cursor.accept(size * kMiB);
  cursor.validate();
  return found;
}

TEST_CASE("a cursor follows the beginning and then the cycle again and again") {
  const StreamPlan plan = plan_of({7, 9}, {1, 2, 3});
  PlanCursor cursor(plan);
  std::size_t expected = 0;
  for (int i = 0; i < 20; ++i) {
    CHECK(ask(cursor, plan.requests[expected].size / kMiB) == plan.requests[expected].offset);
    expected = expected + 1 < plan.requests.size() ? expected + 1 : plan.first;
    CHECK(cursor.faithful());
  }
  CHECK(cursor.resynchronized() == 0);
}

TEST_CASE("a request that fails is asked for again") {
  const StreamPlan plan = plan_of({}, {1, 2, 3});
  PlanCursor cursor(plan);
  for (int i = 0; i < 5; ++i) CHECK(cursor.next(1 * kMiB) == 0);
  CHECK((ask(cursor, 1) == 0 && ask(cursor, 2) == 1 * kMiB));
}

TEST_CASE("requests left out or too many do not lose a program that was followed") {
  const StreamPlan plan = plan_of({}, numbers(1, 100));
  PlanCursor cursor(plan);
  const auto follow = [&](std::size_t from, std::size_t to) {
    for (std::size_t i = from; i < to; ++i) CHECK(ask(cursor, i + 1) == plan.requests[i].offset);
  };
  for (int round = 0; round < 3; ++round) follow(0, 100);
  follow(0, 10);
  CHECK((ask(cursor, 500) == kNowhere && !cursor.faithful()));
  follow(10, 50);
  follow(53, 100);  // three left out
  follow(0, 52);
  CHECK(!cursor.faithful());
  follow(52, 53);  // a whole cycle since
  CHECK((!cursor.faithful() && cursor.resynchronized() == 0));
}

TEST_CASE("a program that returns after something else is followed again") {
  const StreamPlan plan = plan_of({}, numbers(1, 100));
  PlanCursor cursor(plan);
  for (int round = 0; round < 2; ++round)
    for (const Bytes size : numbers(1, 100)) ask(cursor, size);
  for (int i = 0; i < 200; ++i) CHECK((ask(cursor, 500) == kNowhere || i == 0));
  int served = 0;
  for (const Bytes size : numbers(1, 100)) served += ask(cursor, size) != kNowhere;
  CHECK((served == 100 - 16 && cursor.resynchronized() == 1));
}

// It has to show a whole cycle first.
TEST_CASE("a plan that never fitted is watched before it is followed") {
  const StreamPlan plan = plan_of(numbers(300, 20), numbers(1, 100));
  PlanCursor cursor(plan);
  // Two doubts, then what tells the place, then a cycle.
  int asked = 0;
  while (ask(cursor, asked % 100 + 1) == kNowhere) ++asked;
  CHECK((asked == 2 + 16 + 100 && cursor.resynchronized() == 1));
}

TEST_CASE("a place with a double is not taken for it") {
  // Two layers that look alike: only what comes behind both of them tells where the program is.
  std::vector<Bytes> cycle;
  for (int layer = 0; layer < 2; ++layer)
    for (const Bytes size : numbers(1, 40)) cycle.push_back(size);
  cycle.push_back(77);
  const StreamPlan plan = plan_of({}, cycle);
  PlanCursor cursor(plan);
  for (int round = 0; round < 2; ++round)
    for (const Bytes size : cycle) ask(cursor, size);
  for (int i = 0; i < 40; ++i) ask(cursor, 500);
  CHECK(cursor.resynchronized() == 0);
  for (const Bytes size : numbers(10, 31)) ask(cursor, size);  // of the first layer, or of the second
  CHECK(cursor.resynchronized() == 0);
  ask(cursor, 77);
  CHECK(cursor.resynchronized() == 1);
  CHECK(ask(cursor, 1) == plan.requests[0].offset);
}

struct BlocksRig : Range {
  explicit BlocksRig(const StreamPlan& plan) : Range(64, 8, 128), plan(plan), blocks(residency, 16, this->plan) {}
  void check() const {
    std::vector<std::uint32_t> blocks_of(residency.pages());
    blocks.validate(blocks_of);
    residency.validate(blocks_of);
  }
  StreamPlan plan;
  PlannedBlocks blocks;
};

constexpr PlannedBlocks::Bounds kAnyCost{~Bytes{0}, ~Bytes{0}};

TEST_CASE("a planned place is free only if nothing lives on any of it") {
  // By each pair of blocks on four pages, with edges at, before and behind those of pages.
  std::vector<PlannedRequest> all;
  const Bytes step = kPage / 4;
  for (Bytes from = 0; from < 4 * kPage; from += step)
    for (Bytes size = step; from + size <= 4 * kPage; size += step) all.push_back({size, from});
  StreamPlan plan{0, 0, all, 0, static_cast<std::uint32_t>(all.size()), 4 * kPage};
  BlocksRig rig(plan);
  for (const PlannedRequest& one : all) {
    CHECK(rig.blocks.allocate(one.offset, one.size, one.size - 1, kAnyCost) == Status::ok);
    PlannedBlocks::Block* block = rig.blocks.at(rig.blocks.offset_of(one.offset));
    CHECK((block != nullptr && block->size == one.size && block->requested == one.size - 1));
    CHECK((rig.blocks.containing(block->end() - 1) == block && rig.blocks.containing(block->end()) == nullptr));
    for (const PlannedRequest& other : all) {
      const bool apart = other.offset + other.size <= one.offset || one.offset + one.size <= other.offset;
      const Status status = rig.blocks.allocate(other.offset, other.size, 1, kAnyCost);
      CHECK(status == (apart ? Status::ok : Status::failed));
      if (apart) rig.blocks.free(rig.blocks.at(rig.blocks.offset_of(other.offset)));
    }
    rig.check();
    rig.blocks.free(block);
    CHECK(rig.blocks.at(rig.blocks.offset_of(one.offset)) == nullptr);
  }
  rig.check();
  CHECK((rig.blocks.live_blocks() == 0 && rig.resident() == 0));
}

TEST_CASE("a page with too many pieces takes no more") {
  StreamPlan plan;
  for (Bytes i = 0; i < 64; ++i) plan.requests.push_back({kPage / 64, i * kPage / 64});
  plan.period = 64;
  plan.height = kPage;
  BlocksRig rig(plan);
  std::size_t placed = 0;
  for (const PlannedRequest& one : plan.requests)
    placed += rig.blocks.allocate(one.offset, one.size, one.size, kAnyCost) == Status::ok;
  CHECK(placed == 31);
  rig.check();
}

TEST_CASE("a place that leaves too much unused is refused") {
  StreamPlan plan;
  for (Bytes i = 0; i < 8; ++i) plan.requests.push_back({kPage / 4, 2 * i * kPage});
  plan.requests.push_back({kPage / 4, kPage / 2});  // on the page of the first
  plan.period = 9;
  plan.height = 16 * kPage;
  BlocksRig rig(plan);
  const auto place = [&](std::size_t number, Bytes room, Bytes waste) {
    const PlannedRequest& one = plan.requests[number];
    return rig.blocks.allocate(one.offset, one.size, one.size, {room, waste});
  };
  CHECK(place(0, 0, kPage / 2) == Status::failed);  // 3/4 of a page
  CHECK((rig.blocks.waste() == 0 && rig.resident() == 0));
  CHECK(place(0, 0, kPage) == Status::ok);
  CHECK((place(1, 0, kPage) == Status::failed && place(1, kPage, 0) == Status::ok));
  CHECK(rig.blocks.waste() == kPage * 3 / 2);
  CHECK(place(8, 0, 0) == Status::ok);  // adds no page
  CHECK(rig.blocks.waste() == kPage * 5 / 4);
  rig.check();
  for (const std::size_t number : {0, 1, 8})
    rig.blocks.free(rig.blocks.at(rig.blocks.offset_of(plan.requests[number].offset)));
  CHECK(rig.blocks.waste() == 0);
  rig.check();
}

// --- an allocator with a plan ------------------------------------------------------------------------------------

Plan only(StreamPlan part, Bytes above = 128 << 10) { return {above, {std::move(part)}}; }

struct PlannedRig {
  explicit PlannedRig(const Plan& plan, std::uint64_t pages = 256, std::uint64_t lag = 0,
                      const Options& options = growing("tight"))
      : model(device_of(pages, lag)), allocator(model, options, &plan) {}
  DeviceStats stats() const { return allocator.stats(0); }
  std::uint64_t calls() const {
    std::uint64_t sum = 0;
    for (const auto& [kind, count] : stats().driver_calls) sum += count;
    return sum;
  }
  void check() const {
    allocator.validate();
    CHECK(model.violations() == 0);
  }
  ModelDriver model;
  Allocator allocator;
};

// Three blocks that stay, then steps of four of which two are alive at a time.
StreamPlan steps() {
  StreamPlan plan = plan_of({4, 8, 4}, {});
  const Bytes bottom = plan.height;
  plan.requests.insert(
      plan.requests.end(),
      {{6 * kMiB, bottom}, {10 * kMiB, bottom + 6 * kMiB}, {3 * kMiB, bottom}, {200 << 10, bottom + 3 * kMiB}});
  plan.period = 4;
  plan.height = bottom + 16 * kMiB;
  return plan;
}

struct Steps {
  explicit Steps(Allocator& allocator) : allocator(allocator) {}
  Address take(Bytes bytes) { return allocator.allocate(bytes, 0, 0); }
  void begin() {
    for (const Bytes size : {4, 8, 4}) take(size * kMiB);
  }
  void step() {
    const Address a = take(6 * kMiB), b = take(10 * kMiB);
    allocator.free(a);
    const Address c = take(3 * kMiB), d = take(200 << 10);
    for (const Address each : {b, c, d}) allocator.free(each);
  }
  Allocator& allocator;
};

TEST_CASE("a program that repeats itself is served from its plan with no driver call") {
  PlannedRig rig(only(steps()));
  Steps program(rig.allocator);
  program.begin();
  program.step();
  program.step();
  rig.check();
  const std::uint64_t calls = rig.calls();
  for (int i = 0; i < 10; ++i) program.step();
  CHECK((rig.calls() == calls && rig.stats().plan_misses == 0 && rig.stats().plan_hits == 3 + 4 * 12));
  CHECK(static_cast<Bytes>(rig.stats().reserved.peak) == steps().height);
  CHECK(rig.stats().live.peak == rig.stats().requested.peak);  // the small one of 200 KiB has no size class either
  rig.check();
}

TEST_CASE("a planned place where something lives is not given out") {
  PlannedRig rig(only(steps()));
  Steps program(rig.allocator);
  program.begin();
  program.step();
  const Address kept = program.take(6 * kMiB);  // of this step: the next finds it there
  program.take(10 * kMiB);
  program.take(3 * kMiB);  // over the one that was kept
  program.take(200 << 10);
  CHECK(rig.stats().plan_misses == 2);
  const std::uint64_t misses = rig.stats().plan_misses;
  const Address again = program.take(6 * kMiB);
  CHECK((again != kept && rig.stats().plan_misses == misses + 1));
  rig.check();
}

TEST_CASE("pending frees keep their places") {
  PlannedRig rig(only(steps()), 256, 10);
  Steps program(rig.allocator);
  program.begin();
  const Address first = program.take(6 * kMiB);
  const Address second = program.take(10 * kMiB);
  rig.allocator.record_stream(first, {0, 16});
  rig.allocator.free(first);
  rig.allocator.free(second);
  program.take(3 * kMiB);  // would lie where the pending one does
  CHECK(rig.stats().plan_misses == 1);
  rig.check();
  rig.model.advance(20);
  program.take(200 << 10);
  rig.check();
}

TEST_CASE("idle planned pages serve others and leave when they are asked for") {
  PlannedRig rig(only(steps()), 20);
  Steps program(rig.allocator);
  program.begin();
  program.step();
  const Address other = rig.allocator.allocate(20 * kMiB, 0, 16);  // of another stream: what the step left
  CHECK((other != 0 && rig.stats().pages_stolen > 0));
  rig.check();
  rig.allocator.free(other);
  program.step();
  rig.check();
  CHECK(rig.allocator.empty_cache() > 0);
  CHECK(static_cast<Bytes>(rig.stats().reserved.current) == 16 * kMiB);
  program.step();
  rig.check();
}

TEST_CASE("a plan is not used where it cannot be") {
  Options options;
  options.segments = true;
  PlannedRig rig(only(steps()), 256, 0, options);
  Steps program(rig.allocator);
  program.begin();
  program.step();
  CHECK(rig.stats().plan_hits + rig.stats().plan_misses == 0);
  StreamPlan huge = steps();
  huge.height = Bytes{1} << 40;
  PlannedRig small(only(huge));
  Steps(small.allocator).begin();
  CHECK(small.stats().plan_hits == 0);
  rig.check();
  small.check();
}

TEST_CASE("plans that make no sense are refused") {
  const auto refused = [](auto change) {
    StreamPlan plan = steps();
    change(plan);
    ModelDriver model(device_of(16));
    const Plan whole = only(plan);
    try {
      Allocator allocator(model, {}, &whole);
    } catch (const ConfigError&) {
      return true;
    }
    return false;
  };
  CHECK(!refused([](StreamPlan&) {}));
  CHECK(refused([](StreamPlan& plan) { plan.period = 0; }));
  CHECK(refused([](StreamPlan& plan) { plan.period = 3; }));
  CHECK(refused([](StreamPlan& plan) { plan.first = 7; }));
  CHECK(refused([](StreamPlan& plan) { plan.height -= 512; }));
  CHECK(refused([](StreamPlan& plan) { plan.requests[0].size = 0; }));
  CHECK(refused([](StreamPlan& plan) { plan.requests[0].size += 1; }));
  CHECK(refused([](StreamPlan& plan) { plan.requests[0].offset += 1; }));
  CHECK(refused([](StreamPlan& plan) { plan.requests[0].offset = ~Bytes{511}; }));
  CHECK(refused([](StreamPlan& plan) { plan.requests.insert(plan.requests.end(), 4, {512, 0}); }));
}

// Every thread follows the plan for a while, then does at random what programs do; all pages are watched.
TEST_CASE("threads that follow and leave their plans disturb no work") {
  std::mt19937 random(7);
  StreamPlan part;
  for (int i = 0; i < 24; ++i) part.requests.push_back({(1 + random() % 4096) * 512, (random() % 8192) * 512});
  part.period = 24;
  part.height = 8 * kPage;
  Plan plan{0, {}};
  for (part.stream = 1; part.stream <= stress::kStreams; ++part.stream) plan.streams.push_back(part);
  stress::Program program(96, Lie::none, true, {}, &plan);
  stress::run(program, 500, [&](stress::Actor& actor) {
    std::size_t at = 0;
    for (int i = 0; i < 2000; ++i) {
      if (i % 100 < 60)
        actor.follow(part, at);
      else
        actor.step();
    }
  });
  CHECK((program.allocator.stats(0).plan_hits > 100 && program.allocator.stats(0).plan_misses > 100));
  program.finish();
}

}  // namespace
