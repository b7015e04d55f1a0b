// A program that does at random what programs do with memory, on a modelled device whose events lag, watched by a
// PageChecker: blocks of all sizes on several streams, frees from other threads, uses by other streams, pools, CUDA
// graphs that are launched again and again, limits that change, trimming.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/allocator.h"
#include "driver/model_driver.h"
#include "effort.h"
#include "faulty_driver.h"
#include "forwarding_driver.h"
#include "lying_driver.h"
#include "page_checker.h"

namespace stress {

using namespace poolalloc;

inline constexpr unsigned kThreads = 4;
inline constexpr unsigned kStreams = 8;
inline constexpr StreamId kAside = 1000;   // a stream that uses blocks of the others
inline constexpr Stream kAbroad{1, 2000};  // and one of another device
inline constexpr Bytes kKiB = 1 << 10;
inline constexpr std::uint64_t kLag = 20;

inline StreamId stream_of(unsigned index) { return 16 * (StreamId{index % kStreams} + 1); }

// Waiting for the device takes a while, as it does on a real one: time for the other threads to get in between.
class SlowDriver final : public ForwardingDriver {
 public:
  using ForwardingDriver::ForwardingDriver;
  // For one thread alone.
  void hurry() { pause_ = {}; }
  Status synchronize_event(const MayAsk& token, Device device, Event event) override {
    if (pause_.count() != 0) std::this_thread::sleep_for(pause_);
    return ForwardingDriver::synchronize_event(token, device, event);
  }

 private:
  std::chrono::microseconds pause_{300};
};

struct Block {
  Address address = 0;
  Bytes bytes = 0;
  StreamId stream = 0;
  PageChecker::Block name = 0;
};

// A captured graph and the pool it allocates from; blocks are those that it hands to the program.
struct Graph {
  PoolId pool;
  PageChecker::Graph name = 0;
  std::vector<Block> blocks;
};

// Blocks that one thread made and another frees.
class Exchange {
 public:
  void give(Block block) {
    std::lock_guard guard(mutex_);
    blocks_.push_back(block);
  }
  bool take(Block* block) {
    std::lock_guard guard(mutex_);
    if (blocks_.empty()) return false;
    *block = blocks_.back();
    blocks_.pop_back();
    return true;
  }

 private:
  std::mutex mutex_;
  std::vector<Block> blocks_;
};

// What the threads share.
struct Program {
  explicit Program(std::uint64_t device_pages, Lie lie = Lie::none, bool virtual_memory = true,
                   const Options& options = {}, const Plan* plan = nullptr)
      : model(device_of(device_pages, virtual_memory)),
        checker(model),
        liar(checker, lie),
        slow(liar),
        faulty(slow),
        allocator(faulty, options, plan) {
    model.add_stream(kAbroad.device, kAbroad.id);
    model.set_stream_lag(kAbroad.device, kAbroad.id, 3 * kLag);
  }

  static ModelOptions device_of(std::uint64_t pages, bool virtual_memory) {
    ModelOptions options;
    options.devices = 2;
    options.memory_bytes = pages * kPageBytes;
    options.event_lag = kLag;
    options.virtual_memory = virtual_memory;
    return options;
  }
  // Says what the checker found.
  bool sound() const {
    for (const PageChecker::Finding& finding : checker.findings())
      std::fprintf(stderr, "%s: %s\n", PageChecker::name(finding.rule), finding.text.c_str());
    if (model.violations() != 0) std::fprintf(stderr, "contract: %s\n", model.first_violation().c_str());
    return checker.findings().empty() && model.violations() == 0;
  }
  // Everything was freed: nothing is left, but for what is created ahead, and nothing wrong happened.
  void finish(Bytes ahead = 0) {
    Block block;
    while (exchange.take(&block)) free(block);
    for (int i = 0; i < 2; ++i) {
      model.advance(6 * kLag);
      allocator.empty_cache();
    }
    allocator.validate();
    CHECK(sound());
    CHECK((allocator.stats(0).live_blocks == 0 && allocator.stats(0).pending.current == 0));
    CHECK((allocator.stats(0).requested.current == 0 && allocator.stats(0).live.current == 0));
    CHECK((model.used_bytes(0) <= ahead && checker.blocks() == 0));
  }

  // False if there was no memory.
  bool allocate(Bytes bytes, StreamId stream, std::vector<Block>& own, PoolId pool = {}) {
    Block block;
    try {
      block.address = allocator.allocate(bytes, 0, stream);
    } catch (const OutOfMemory&) {
      CHECK(!faulty.lost());
      ++out_of_memory;
      return false;
    } catch (const DriverError& error) {
      if (!faulty.failed()) std::fprintf(stderr, "%s\n", error.what());
      CHECK(faulty.failed());
      return false;
    }
    block.stream = stream;
    CHECK((allocator.base_allocation(block.address, &block.bytes) == block.address && block.bytes >= bytes));
    block.name = checker.allocated(0, stream, block.address, block.bytes, pool);
    checker.used(block.name, stream);
    own.push_back(block);
    return true;
  }
  void use_elsewhere(const Block& block, Stream stream) {
    checker.used(block.name, stream);
    allocator.record_stream(block.address, stream);
  }
  void free(const Block& block) {
    checker.used(block.name, block.stream);
    checker.freed(block.name);
    allocator.free(block.address);
  }
  void free_one(std::vector<Block>& own, std::size_t index) {
    std::swap(own[index], own.back());
    free(own.back());
    own.pop_back();
  }
  // Nothing uses it before it goes, as nothing can.
  void free_one_asleep(std::vector<Block>& own, std::size_t index) {
    std::swap(own[index], own.back());
    checker.freed(own.back().name);
    allocator.free(own.back().address);
    own.pop_back();
  }
  void free_all(std::vector<Block>& own) {
    while (!own.empty()) free_one(own, own.size() - 1);
  }

  ModelDriver model;
  PageChecker checker;
  LyingDriver liar;
  SlowDriver slow;
  FaultyDriver faulty;
  Allocator allocator;
  Exchange exchange;
  std::atomic<std::uint64_t> out_of_memory{0};
};

// What one thread does; `own` are the blocks it is to free.
struct Actor {
  Actor(Program& program, unsigned thread, unsigned seed) : program(program), thread(thread), random(seed) {}

  void step() {
    const unsigned what = random() % 1000;
    // Mostly the thread's own two streams, so that heaps are shared but seldom.
    const StreamId stream = stream_of(random() % 8 == 0 ? random() : 2 * thread + random() % 2);
    if (what < 480) {
      const Bytes sizes[] = {1 + random() % (8 * kKiB), 1 + random() % (256 * kKiB), 1 + random() % (6 * kPageBytes),
                             (1 + random() % 6) * kPageBytes};
      if (!program.allocate(sizes[random() % 4], stream, own))
        for (std::size_t i = own.size() / 2; i-- > 0;) program.free_one(own, i);
    } else if (what < 800) {
      if (!own.empty()) program.free_one(own, random() % own.size());
    } else if (what < 870) {
      if (own.empty()) return;
      program.exchange.give(own.back());
      own.pop_back();
    } else if (what < 930) {
      Block block;
      if (program.exchange.take(&block)) program.free(block);
    } else if (what < 970) {
      const Stream stream = random() % 4 == 0 ? kAbroad : Stream{0, kAside};
      if (!own.empty()) program.use_elsewhere(own[random() % own.size()], stream);
    } else if (what < 990) {
      program.model.advance(1 + random() % kLag);
    } else if (what < 992) {
      program.allocator.empty_cache();
    } else if (what < 995) {
      const Bytes target = random() % 64 * kPageBytes;
      program.allocator.trim(target, 0, random() % 4 == 0);
    } else if (what < 996) {
      const DeviceStats stats = program.allocator.stats(0);
      CHECK((stats.limit_bytes <= stats.total_bytes && program.allocator.memory_fraction(0) <= 1));
    } else if (what < 998) {
      if (random() % 2 == 0)
        program.allocator.set_memory_fraction(random() % 2 == 0 ? 1.0 : 0.7, 0);
      else
        program.allocator.set_memory_limit(random() % 2 == 0 ? 0 : 60 * kPageBytes, 0);
    } else {
      CHECK_THROWS_AS(program.allocator.free(Address{4096} * (1 + thread)), UsageError);
    }
  }

  // The next requests of a plan, on a stream of the thread's own; a few of the latest stay.
  void follow(const StreamPlan& plan, std::size_t& at) {
    const Bytes size = plan.requests[at].size;
    at = at + 1 < plan.requests.size() ? at + 1 : plan.first;
    if (!program.allocate(size - random() % 512, stream_of(2 * thread), own)) return program.free_all(own);
    while (own.size() > 6) program.free_one(own, random() % own.size());
  }

  // A pool of one stream, as torch makes it for a memory pool, left with its blocks still live.
  void use_a_pool() {
    const PoolId pool = next_pool();
    fill_pool(pool, own);
    program.allocator.release_pool(0, pool);
  }

  // The same in a capture. The graph lives on.
  void capture() {
    Graph graph{next_pool(), 0, {}};
    // As torch does it: requests go to the pool before the capture begins and until it is over.
    program.allocator.begin_allocate_to_pool(0, graph.pool, [this](StreamId asked) { return asked == pool_stream(); });
    program.allocator.begin_capture(0);
    program.model.begin_capture(0, pool_stream());
    graph.name = program.checker.begin_capture(0, pool_stream(), graph.pool);
    allocate_from_pool(graph.pool, graph.blocks);
    program.checker.end_capture(graph.name);
    program.model.end_capture(0, pool_stream());
    program.allocator.end_capture(0);
    program.allocator.end_allocate_to_pool(0, graph.pool);
    graphs.push_back(std::move(graph));
  }
  void launch() {
    if (!graphs.empty()) program.checker.replayed(graphs[random() % graphs.size()].name, stream_of(random()));
  }
  // As torch does it: the pool is released with the graph, whatever lives in it.
  void destroy_graph() {
    if (graphs.empty()) return;
    std::swap(graphs[random() % graphs.size()], graphs.back());
    Graph& graph = graphs.back();
    program.checker.destroyed(graph.name);
    program.allocator.release_pool(0, graph.pool);
    own.insert(own.end(), graph.blocks.begin(), graph.blocks.end());
    graphs.pop_back();
  }
  // A region of the thread's own: it allocates there and frees, captures a graph into it now and then, and puts all of
  // it to sleep; meanwhile it may free.
  std::string tag() const { return "region " + std::to_string(thread); }
  void live_in_a_region() {
    const unsigned what = random() % 10;
    if (asleep && what < 7) {
      if (what < 3 && !in_region.empty()) program.free_one_asleep(in_region, random() % in_region.size());
      return;
    }
    if (what < 5) {
      program.allocator.enter_region(tag());
      program.allocate(1 + random() % (4 * kPageBytes), stream_of(2 * thread + random() % 2), in_region);
      program.allocator.leave_region();
    } else if (what < 6) {
      if (!in_region.empty()) program.free_one(in_region, random() % in_region.size());
    } else if (what < 7) {
      if (region_graphs.size() < 2) {
        program.allocator.enter_region(tag());
        std::swap(graphs, region_graphs);
        capture();
        std::swap(graphs, region_graphs);
        program.allocator.leave_region();
      } else if (!region_graphs.empty()) {
        program.checker.replayed(region_graphs[0].name, stream_of(2 * thread));
      }
    } else if (!asleep) {
      sleep();
    } else {
      wake();
    }
  }
  template <typename DoBlock, typename DoGraph>
  void each_in_region(DoBlock block, DoGraph graph) {
    for (const Block& each : in_region) block(each.name);
    for (const Graph& each : region_graphs) {
      for (const Block& one : each.blocks) block(one.name);
      graph(each.name);
    }
  }
  void sleep() {
    const auto told = [&](auto of_block, auto of_graph) {
      each_in_region([&](PageChecker::Block name) { (program.checker.*of_block)(name); },
                     [&](PageChecker::Graph name) { (program.checker.*of_graph)(name); });
    };
    try {
      // No wait may stand between these: the driver's calls of other threads may, which touch nothing of the region.
      told(&PageChecker::block_falls_asleep, &PageChecker::graph_falls_asleep);
      program.allocator.sleep({tag()}, random() % 2 == 0 ? Keep::nothing : Keep::host);
      asleep = !program.allocator.regions().empty();
    } catch (const UsageError&) {  // there is no such region yet, or another thread is capturing
      told(&PageChecker::block_woke, &PageChecker::graph_woke);
    } catch (const DriverError&) {
      CHECK(program.faulty.failed());
      told(&PageChecker::block_woke, &PageChecker::graph_woke);
    }
  }
  bool wake() {
    try {
      program.allocator.wake({tag()});
    } catch (const OutOfMemory&) {
      return false;
    } catch (const UsageError&) {
      return false;
    } catch (const DriverError&) {
      CHECK(program.faulty.failed());
      return false;
    }
    asleep = false;
    each_in_region([&](PageChecker::Block name) { program.checker.block_woke(name); },
                   [&](PageChecker::Graph name) { program.checker.graph_woke(name); });
    return true;
  }
  // Everything it still has in there; what is asleep is never used again.
  void leave_the_region() {
    while (!region_graphs.empty()) {
      Graph& graph = region_graphs.back();
      program.checker.destroyed(graph.name);
      program.allocator.release_pool(0, graph.pool);
      in_region.insert(in_region.end(), graph.blocks.begin(), graph.blocks.end());
      region_graphs.pop_back();
    }
    while (!in_region.empty()) {
      if (asleep)
        program.free_one_asleep(in_region, in_region.size() - 1);
      else
        program.free_one(in_region, in_region.size() - 1);
    }
  }

  // Everything it still has.
  void finish() {
    while (!graphs.empty()) destroy_graph();
    leave_the_region();
    program.free_all(own);
  }

  StreamId pool_stream() const { return 5000 + thread; }
  PoolId next_pool() { return {(std::uint64_t{thread} << 32) + ++pools, 1}; }
  void fill_pool(PoolId pool, std::vector<Block>& blocks) {
    program.allocator.begin_allocate_to_pool(0, pool, [this](StreamId asked) { return asked == pool_stream(); });
    allocate_from_pool(pool, blocks);
    program.allocator.end_allocate_to_pool(0, pool);
  }
  void allocate_from_pool(PoolId pool, std::vector<Block>& blocks) {
    for (int i = 0; i < 6; ++i) {
      program.allocate(1 + random() % (3 * kPageBytes), pool_stream(), blocks, pool);
      if (i % 2 == 1 && !blocks.empty()) program.free_one(blocks, blocks.size() - 1);
    }
  }

  Program& program;
  const unsigned thread;
  std::mt19937 random;
  std::vector<Block> own;
  std::vector<Graph> graphs;
  std::vector<Block> in_region;
  std::vector<Graph> region_graphs;
  bool asleep = false;
  std::uint64_t pools = 0;
};

// One actor a thread, and what it does; ends when all are done.
template <typename Body>
void run(Program& program, unsigned seed, Body body) {
  std::vector<std::thread> threads;
  for (unsigned thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&program, &body, thread, seed] {
      Actor actor(program, thread, seed + thread);
      body(actor);
      actor.finish();
    });
  for (std::thread& thread : threads) thread.join();
}

// Allocates blocks of up to 12 pages, and frees others before they could lie on more than so many pages at once.
inline void live_within(Actor& actor, Bytes most_pages, int allocations) {
  Bytes pages = 0;
  for (int i = 0; i < allocations; ++i) {
    const Bytes wanted = 1 + actor.random() % 12;
    while (pages + wanted + 1 > most_pages) {
      const std::size_t index = actor.random() % actor.own.size();
      pages -= actor.own[index].bytes / kPageBytes + 1;
      actor.program.free_one(actor.own, index);
    }
    const StreamId stream = stream_of(2 * actor.thread + actor.random() % 2);
    CHECK(actor.program.allocate(wanted * kPageBytes, stream, actor.own));
    pages += wanted + 1;
  }
}

}  // namespace stress
