// Exact bins: which blocks are kept and which go first, against a naive account; and threads that run out of memory
// with and without them, watched by the checker.
#include "core/placement/exact_bins.h"

#include <algorithm>
#include <deque>
#include <map>
#include <random>

#include "core_rig.h"
#include "stress_program.h"

using namespace rig;
using stress::Actor;
using stress::Program;

namespace {

constexpr Bytes kMiB = 1 << 20;
constexpr PageIndex kPages = 512;

struct Keeping : Range {
  explicit Keeping(const std::vector<ExactBin>& configured)
      : Range(kPages, 0, kPages), arena(residency, 0, 8), bins(arena, configured) {}

  Arena::Block* place(Bytes bytes) {
    Arena::Block* block = nullptr;
    residency.permit(Residency::Source::any, true);
    CHECK(arena.allocate(bytes, &block) == Status::ok);
    return block;
  }
  void check() const {
    bins.validate();
    std::vector<std::uint32_t> blocks_of(kPages);
    arena.validate(blocks_of);
    residency.validate(blocks_of);
    check_accounts();
  }

  Arena arena;
  ExactBins bins;
};

TEST_CASE("a size is found and no other") {
  std::vector<ExactBin> configured;
  for (std::size_t i = 0; i < ExactBin::kMostBins; ++i) configured.push_back({(i + 1) * kMiB * 7 / 3, 0, 2});
  const Keeping heap(configured);
  for (const ExactBin& each : configured) {
    const Bytes size = round_up(each.size, kGranularity);
    const ExactBins::Bin* bin = heap.bins.find(size);
    CHECK((bin != nullptr && bin->size == size && bin->keep == 2));
    CHECK((heap.bins.find(size + kGranularity) == nullptr && heap.bins.find(size - kGranularity) == nullptr));
  }
  heap.check();
}

// What is kept, by size, in the order in which it came; and in which order of all.
TEST_CASE("random use agrees with lists") {
  const std::vector<ExactBin> configured = {{kMiB, 0, 5}, {2 * kMiB + 512, 2, 4}, {5 * kMiB, 3, 3}};
  Keeping heap(configured);
  std::map<Bytes, std::deque<std::pair<std::uint64_t, Arena::Block*>>> kept;
  std::map<Bytes, std::vector<Arena::Block*>> live;
  std::mt19937 random(3);
  std::uint64_t number = 0, released = 0;
  const auto limits = [&](Bytes size) {
    return *std::find_if(configured.begin(), configured.end(), [&](const ExactBin& each) { return each.size == size; });
  };
  const auto release = [&](Bytes bytes, bool surplus, std::uint64_t up_to) {
    Bytes sum = 0;
    while (sum < bytes) {
      Bytes oldest = 0;
      for (auto& [size, blocks] : kept)
        if (blocks.size() > (surplus ? static_cast<std::size_t>(limits(size).preallocate) : 0) &&
            (oldest == 0 || blocks.front().first < kept[oldest].front().first))
          oldest = size;
      if (oldest == 0 || kept[oldest].front().first > up_to) break;
      kept[oldest].pop_front();
      sum += oldest;
      ++released;
    }
    return sum;
  };
  for (int i = 0; i < 20000; ++i) {
    const Bytes size = configured[random() % configured.size()].size;
    ExactBins::Bin& bin = *heap.bins.find(size);
    std::vector<Arena::Block*>& mine = live[size];
    const unsigned what = random() % 100;
    if (what < 50) {
      if (mine.size() >= 30) continue;
      CHECK(bin.blocks.empty() == kept[size].empty());
      if (bin.blocks.empty()) {
        mine.push_back(heap.place(size));
      } else {
        Arena::Block* block = heap.bins.take(bin, size - 1);
        CHECK((block == kept[size].back().second && block->in_use() && block->requested == size - 1));
        kept[size].pop_back();
        mine.push_back(block);
      }
    } else if (what < 95) {
      if (mine.empty()) continue;
      std::swap(mine[random() % mine.size()], mine.back());
      Arena::Block* block = mine.back();
      mine.pop_back();
      const bool room = kept[size].size() < static_cast<std::size_t>(limits(size).keep);
      CHECK(heap.bins.has_room(bin) == room);
      if (room) {
        heap.bins.keep(bin, block);
        CHECK((block->kept() && !block->in_use() && heap.arena.containing(block->offset) == nullptr));
        kept[size].emplace_back(++number, block);
      } else {
        heap.arena.free(block);
      }
    } else {
      const Bytes bytes = random() % (8 * kMiB);
      const bool surplus = random() % 2 == 0;
      const std::uint64_t up_to = random() % 2 == 0 ? ~std::uint64_t{0} : number - std::min<std::uint64_t>(number, 4);
      const Bytes expected = release(bytes, surplus, up_to);
      CHECK(heap.bins.release(bytes, surplus ? ExactBins::Which::surplus : ExactBins::Which::all, up_to) == expected);
    }
    Bytes bytes = 0;
    std::uint64_t blocks = 0, surplus = 0;
    for (const auto& [each, own] : kept) {
      bytes += each * own.size();
      blocks += own.size();
      surplus += own.size() - std::min(own.size(), static_cast<std::size_t>(limits(each).preallocate));
    }
    CHECK((heap.bins.bytes() == bytes && heap.bins.blocks() == blocks && heap.bins.surplus() == surplus));
    CHECK((heap.bins.released() == released && heap.bins.last_number() == number));
    if (i % 100 == 0) heap.check();
  }
  heap.bins.release(~Bytes{0}, ExactBins::Which::all);
  for (auto& [size, blocks] : live)
    for (Arena::Block* block : blocks) heap.arena.free(block);
  heap.check();
  CHECK((heap.resident() == 0 && heap.arena.holes() == 0));
}

// --- under stress ---------------------------------------------------------------------------------------------------

// The sizes that its programs ask for most.
Options with_bins(std::int64_t preallocate) {
  Options options;
  for (Bytes pages = 1; pages <= 6; ++pages) options.exact_bins.push_back({pages * kPageBytes, preallocate, 4});
  return options;
}

void check_counts(const DeviceStats& stats) {
  std::uint64_t served = stats.out_of_memory;
#define X(name) served += stats.after_##name;
  POOLALLOC_RUNGS(X)
#undef X
  CHECK((stats.retries == served && stats.kept_hits > 0 && stats.kept_misses > 0 && stats.kept_released > 0));
}

TEST_CASE("what is kept disturbs no work and has no second owner") {
  for (const std::int64_t preallocate : {0, 2}) {
    Program program(96, Lie::none, true, with_bins(preallocate));
    stress::run(program, 500, [](Actor& actor) {
      for (int i = 0; i < stress::steps(6000); ++i) actor.step();
    });
    const DeviceStats stats = program.allocator.stats(0);
    check_counts(stats);
    CHECK((program.out_of_memory > 0 && (preallocate == 0 || stats.after_releasing > 0)));
    program.finish();
    CHECK(program.allocator.stats(0).kept.current == 0);
  }
}

void live_with_graphs(Program& program, unsigned seed) {
  stress::run(program, seed, [](Actor& actor) {
    for (int i = 0; i < stress::steps(3000); ++i) {
      if (i % 100 == 0) actor.capture();
      if (i % 10 == 5) actor.launch();
      if (i % 100 == 50 && actor.graphs.size() > 3) actor.destroy_graph();
      actor.step();
    }
  });
  check_counts(program.allocator.stats(0));
  program.finish();
  CHECK(program.allocator.stats(0).kept.current == 0);
}

TEST_CASE("graphs and what is kept leave each other alone") {
  Program program(160, Lie::none, true, with_bins(1));
  live_with_graphs(program, 600);
}

TEST_CASE("it is as sound in segments") {
  Program program(160, Lie::none, false, with_bins(1));
  live_with_graphs(program, 700);
}

TEST_CASE("a background thread takes it among the others") {
  Options options = with_bins(1);
  options.trim_high = 8 * kPageBytes;
  options.trim_low = 2 * kPageBytes;
  options.trim_after = 0.004;
  Program program(160, Lie::none, true, options);
  live_with_graphs(program, 800);
}

// As many blocks as fit are kept somewhere, mostly on another stream: nobody may run out for it.
TEST_CASE("what fits never runs out for what is kept") {
  constexpr Bytes kEach = 44;
  Options options = growing("tight");
  for (Bytes pages = 1; pages <= 12; ++pages) options.exact_bins.push_back({pages * kPageBytes, 2, 8});
  Program program(stress::kThreads * kEach, Lie::none, true, options);
  stress::run(program, 200, [](Actor& actor) { stress::live_within(actor, kEach, 2500); });
  CHECK((program.out_of_memory == 0 && program.allocator.stats(0).kept_hits > 0));
  program.finish();
}

}  // namespace
