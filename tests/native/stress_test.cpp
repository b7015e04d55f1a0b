// Threads against one allocator: several streams each, frees from other threads, record_stream, events that lag,
// trimming, pools and graphs that come and go meanwhile, on a device that is too small. A checker that is no part of
// the allocator watches every page; planted bugs show that it does.
//
// Meant for the sanitizers (POOLALLOC_TSAN, POOLALLOC_ASAN), where it takes seconds.
#include "growing.h"
#include "stress_program.h"

using namespace poolalloc;
using stress::Actor;
using stress::Program;

namespace {

// Gives back what threads have left to each other, and allocates in the middle of that.
bool free_exchanged(Program& program) {
  stress::Block block;
  const bool any = program.exchange.take(&block);
  if (any) program.free(block);
  std::vector<stress::Block> own;
  if (program.allocate(1 + stress::kKiB, stress::kAside, own)) program.free_one(own, 0);
  return any;
}

TEST_CASE("no piece of memory has two owners and no work is disturbed") {
  Program program(96);
  program.allocator.oom_callbacks().add([&](DeviceIndex, Bytes) { return free_exchanged(program); });
  stress::run(program, 1, [](Actor& actor) {
    for (int i = 0; i < stress::steps(6000); ++i) actor.step();
  });
  CHECK(program.out_of_memory > 0);  // there was pressure
  const DeviceStats stats = program.allocator.stats(0);
  CHECK((stats.pages_stolen > 0 && stats.after_stealing > 0 && stats.after_callbacks > 0 && stats.after_waiting > 0));
  CHECK(stats.retries == stats.after_unmapping + stats.after_releasing + stats.after_stealing + stats.after_callbacks +
                             stats.after_waiting + stats.after_trimming + stats.after_lending + stats.out_of_memory);
  program.finish();
}

TEST_CASE("pools come and go under the other threads") {
  Program program(160);
  stress::run(program, 100, [](Actor& actor) {
    for (int i = 0; i < stress::steps(3000); ++i) {
      if (i % 60 == 0) actor.use_a_pool();
      actor.step();
    }
  });
  program.finish();
  CHECK(program.allocator.stats(0).heaps.size() <= stress::kStreams);  // the pools are gone
}

void live_with_graphs(Actor& actor, int step) {
  if (step % 100 == 0) actor.capture();
  if (step % 10 == 5) actor.launch();
  if (step % 100 == 50 && actor.graphs.size() > 3) actor.destroy_graph();
  actor.step();
}

TEST_CASE("graphs keep what they saw while other threads run out of memory") {
  Program program(160);
  stress::run(program, 300, [](Actor& actor) {
    for (int i = 0; i < stress::steps(3000); ++i) live_with_graphs(actor, i);
  });
  CHECK(program.allocator.stats(0).pages_stolen > 0);
  program.finish();
}

TEST_CASE("regions sleep and wake while other threads work") {
  Program program(200);
  stress::run(program, 350, [](Actor& actor) {
    for (int i = 0; i < stress::steps(1500); ++i) {
      if (i % 3 == 0) actor.live_in_a_region();
      live_with_graphs(actor, i);
    }
  });
  std::size_t slept = 0;
  for (const RegionStats& region : program.allocator.regions()) slept += region.asleep;
  program.allocator.set_memory_limit(0, 0);
  program.allocator.wake(program.allocator.region_tags());
  program.finish();
  CHECK(program.allocator.stats(0).driver_calls.at("copy_to_host") > 10);
  CHECK((slept <= stress::kThreads && program.allocator.stats(0).asleep == 0));
}

TEST_CASE("segments are as sound where there is no virtual memory management") {
  Program program(160, Lie::none, false);
  stress::run(program, 400, [](Actor& actor) {
    for (int i = 0; i < stress::steps(3000); ++i) live_with_graphs(actor, i);
  });
  CHECK((program.out_of_memory > 0 && program.allocator.stats(0).retries > 0));
  program.finish();
}

TEST_CASE("a background thread creates and trims among the others") {
  Options options;
  options.reserve_ahead = 4 * kPageBytes;
  options.trim_high = 8 * kPageBytes;
  options.trim_low = 2 * kPageBytes;
  options.trim_after = 0.004;
  Program program(160, Lie::none, true, options);
  stress::run(program, 400, [](Actor& actor) {
    for (int i = 0; i < stress::steps(2000); ++i) live_with_graphs(actor, i);
  });
  program.allocator.set_memory_limit(kPageBytes, 0);  // room for no more than one page ahead
  program.finish(kPageBytes);
}

// Each thread's blocks lie on so many pages at most that all of them fit: nobody may run out, though most of the memory
// is idle on another stream, or on its way from there, when it is needed. Larger spans cannot promise that.
TEST_CASE("what fits never runs out") {
  constexpr Bytes kEach = 44;
  Program program(stress::kThreads * kEach, Lie::none, true, growing("tight"));
  stress::run(program, 200, [](Actor& actor) { stress::live_within(actor, kEach, stress::steps(2500)); });
  CHECK(program.out_of_memory == 0);
  program.finish();
}

// --- planted bugs ---------------------------------------------------------------------------------------------------

// One thread, so that the same seed makes the same calls. What the allocator throws meanwhile is no concern: the driver
// under it is broken.
bool found(Lie lie, PageChecker::Rule rule) {
  Program program(96, lie, true, growing("tight"));  // a lie is about one page
  Actor actor(program, 0, 7);
  for (int i = 0; i < 300; ++i) live_with_graphs(actor, i);
  CHECK(program.checker.findings().empty());
  program.liar.start();
  for (int i = 300; i < 3000 && program.checker.found(rule) == 0; ++i) {
    try {
      live_with_graphs(actor, i);
    } catch (const std::exception&) {
    }
  }
  return program.checker.found(rule) != 0;
}

TEST_CASE("planted bugs are found") {
  using Rule = PageChecker::Rule;
  const struct {
    const char* name;
    Lie lie;
    Rule rule;
  } planted[] = {
      {"a free that does not wait for another stream's event", Lie::completed_early, Rule::stream_order},
      {"a free that does not wait for another device's stream", Lie::skips_abroad, Rule::stream_order},
      {"a page taken from a stream without waiting", Lie::waits_for_nothing, Rule::stream_order},
      {"an unmapping without waiting", Lie::waits_for_nothing, Rule::running_work},
      {"an event recorded behind another stream's work", Lie::wrong_stream, Rule::stream_order},
      {"an event recorded behind another stream's work, then an unmapping", Lie::wrong_stream, Rule::running_work},
      {"a block over a page that is not mapped", Lie::not_mapped, Rule::reachable},
      {"a page without access", Lie::no_access, Rule::reachable},
      {"a page mapped under two blocks", Lie::wrong_page, Rule::one_owner},
      {"a graph's page mapped under another's block", Lie::wrong_page, Rule::graph},
      {"a mapping that was to be replaced and is still there", Lie::stale_mapping, Rule::one_owner},
      {"a mapping removed under a live block", Lie::unmaps_neighbour, Rule::reachable},
      {"a mapping removed under a graph", Lie::unmaps_neighbour, Rule::graph},
      {"a page destroyed under a live block", Lie::destroys_mapped, Rule::reachable},
      {"a page destroyed in use", Lie::destroys_mapped, Rule::running_work},
  };
  for (const auto& bug : planted) {
    const bool seen = found(bug.lie, bug.rule);
    std::printf("  %s: %s\n", bug.name, seen ? PageChecker::name(bug.rule) : "NOT FOUND");
    CHECK(seen);
  }
}

}  // namespace
