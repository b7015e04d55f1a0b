// Placement: tiling and merging, which hole is taken, what a failure leaves, and random use against naive lists.
#include "core/placement/arena.h"

#include <algorithm>
#include <map>
#include <random>

#include "core_rig.h"

using namespace rig;

namespace {

constexpr PageIndex kFirst = 4;  // pages before it are not the arena's
constexpr PageIndex kPages = 132;
constexpr Bytes kKiB = 1 << 10;

struct Placing : Range {
  explicit Placing(std::uint64_t device_pages = 64, int candidates = 8)
      : Range(device_pages, kFirst, kPages), arena(residency, kFirst, candidates) {}

  Arena::Block* place(Bytes bytes) {
    Arena::Block* block = nullptr;
    CHECK(arena.allocate(bytes, &block) == Status::ok);
    CHECK((block->live() && block->requested == bytes && block->size == round_up(bytes, kGranularity)));
    return block;
  }
  void check() const {
    std::vector<std::uint32_t> blocks_of(kPages);
    arena.validate(blocks_of);
    residency.validate(blocks_of);
    check_accounts();
  }
  // Sizes of the holes by offset.
  std::map<Bytes, Bytes> holes() const {
    std::map<Bytes, Bytes> found;
    for (const Arena::Block* block = arena.first_block(); block != nullptr; block = block->next)
      if (!block->live()) found[block->offset] = block->size;
    return found;
  }
  Residency::Cost cost(Bytes offset, Bytes size) const {
    return residency.cost(static_cast<PageIndex>(offset / kPage), static_cast<PageIndex>((offset + size - 1) / kPage));
  }

  Arena arena;
};

TEST_CASE("blocks tile the range and neighbouring holes merge") {
  Placing heap;
  Arena::Block* blocks[5];
  for (Arena::Block*& block : blocks) block = heap.place(100 * kKiB);
  for (int i = 0; i < 5; ++i) CHECK(blocks[i]->offset == kFirst * kPage + i * 100 * kKiB);
  heap.arena.free(blocks[1]);
  heap.arena.free(blocks[3]);
  CHECK(heap.holes().size() == 2);
  heap.check();
  heap.arena.free(blocks[2]);  // joins both
  CHECK((heap.holes() == std::map<Bytes, Bytes>{{kFirst * kPage + 100 * kKiB, 300 * kKiB}}));
  heap.check();
  heap.arena.free(blocks[4]);  // the topmost: everything above the first block is fresh again
  CHECK((heap.holes().empty() && heap.arena.top() == kFirst * kPage + 100 * kKiB));
  heap.check();
  heap.arena.free(blocks[0]);
  CHECK((heap.arena.first_block() == nullptr && heap.arena.live_blocks() == 0));
  heap.check();
}

TEST_CASE("of places that cost nothing the lowest is taken") {
  Placing heap;
  std::vector<Arena::Block*> freed;
  const Bytes sizes[] = {96, 24, 64, 40, 32, 128};
  for (Bytes size : sizes) {
    freed.push_back(heap.place(size * kKiB));
    heap.place(512);  // keeps the holes apart, and the page resident
  }
  std::map<Bytes, Bytes> offset_of;
  for (std::size_t i = 0; i < freed.size(); ++i) offset_of[sizes[i]] = freed[i]->offset;
  for (Arena::Block* block : freed) heap.arena.free(block);
  const Bytes resident = heap.resident();
  const auto inside = [&](const Arena::Block* block, Bytes hole) {
    return block->offset >= offset_of[hole] && block->end() <= offset_of[hole] + hole * kKiB;
  };
  CHECK(inside(heap.place(28 * kKiB), 96));
  CHECK(inside(heap.place(40 * kKiB), 40));  // just this size, as a repeating program leaves it
  CHECK(inside(heap.place(65 * kKiB), 96));
  CHECK(inside(heap.place(97 * kKiB), 128));
  CHECK(heap.resident() == resident);
  heap.check();
}

TEST_CASE("a ready place is always taken before the driver is asked") {
  Placing heap;
  Arena::Block* low = heap.place(6 * kPage);
  heap.place(kPage);
  const Bytes offset = low->offset;
  heap.arena.free(low);  // a hole whose pages are idle
  const std::uint64_t calls = mapping_calls(heap.driver);
  CHECK(heap.place(2 * kPage)->offset == offset);
  CHECK(heap.place(4 * kPage)->offset == offset + 2 * kPage);
  CHECK(mapping_calls(heap.driver) == calls);
  heap.place(kPage);
  CHECK(mapping_calls(heap.driver) > calls);
  heap.check();
}

TEST_CASE("blocks that grow one by one lie in one row") {
  Placing heap(128);
  constexpr Bytes kStep = 64 * kKiB;
  std::vector<Arena::Block*> caches;
  Arena::Block* idle = heap.place(40 * kPage);
  for (int i = 0; i < 10; ++i) caches.push_back(heap.place(kPage));
  heap.arena.free(idle);
  Bytes size = kPage;
  for (int step = 0; step < 6; ++step) {
    size += kStep;
    for (Arena::Block*& cache : caches) {  // what a decode step does
      Arena::Block* longer = heap.place(size);
      heap.arena.free(cache);
      cache = longer;
    }
  }
  int neighbours = 0;
  for (std::size_t i = 1; i < caches.size(); ++i) neighbours += caches[i]->offset == caches[i - 1]->end();
  CHECK(neighbours >= 8);
  heap.check();
}

TEST_CASE("fresh addresses are taken when they make fewer pages resident") {
  Placing heap;
  Arena::Block* pad = heap.place(kPage / 2);
  Arena::Block* hole = heap.place(kPage);  // straddles two pages
  Arena::Block* top = heap.place(kPage / 2);
  heap.arena.free(pad);
  heap.place(kPage / 2);
  CHECK(top->end() % kPage == 0);
  heap.arena.free(hole);
  const Bytes resident = heap.resident();
  CHECK(resident == 2 * kPage);
  const Arena::Block* again = heap.place(kPage);  // both halves lie in resident pages
  CHECK((heap.resident() == resident && again->offset < top->offset));
  heap.check();
}

TEST_CASE("a repeating pattern settles into no driver calls") {
  Placing heap;
  std::vector<Arena::Block*> blocks;
  const auto round = [&] {
    for (Bytes bytes : {3 * kPage, 5 * kPage + 512, 300 * kKiB, kPage, 7 * kPage, 900 * kKiB})
      blocks.push_back(heap.place(bytes));
    for (std::size_t i : {1, 3, 5}) heap.arena.free(blocks[i]);
    blocks.push_back(heap.place(4 * kPage));
    for (std::size_t i : {0, 2, 4, 6}) heap.arena.free(blocks[i]);
    blocks.clear();
  };
  for (int i = 0; i < 3; ++i) round();
  const std::uint64_t calls = mapping_calls(heap.driver);
  const Bytes metadata = heap.arena.metadata_bytes(), highest = heap.arena.highest();
  for (int i = 0; i < 100; ++i) round();
  CHECK(mapping_calls(heap.driver) == calls);
  CHECK((heap.arena.metadata_bytes() == metadata && heap.arena.highest() == highest));
  heap.check();
}

TEST_CASE("what is held follows the pages under live blocks not the holes") {
  Placing heap(24);
  // A stretch that grows by one page each round while a pin keeps every old one from merging: 16 live pages at most.
  std::vector<Arena::Block*> pins;
  for (int round = 0; round < 6; ++round) {
    Arena::Block* block = heap.place((10 + round) * kPage);
    pins.push_back(heap.place(512));
    heap.arena.free(block);
  }
  CHECK(heap.held() <= (15 + pins.size() + 1) * kPage);
  heap.check();
}

// Frames of pages above the top may be live elsewhere by then: those addresses are passed over, as memory is not short.
TEST_CASE("blocked pages above the top do not stop a placement") {
  Placing heap;
  Arena::Block* low = heap.place(10 * kPage);
  heap.place(kPage);
  heap.arena.free(heap.place(10 * kPage));
  heap.arena.free(low);
  heap.arena.free(heap.place(15 * kPage));  // at the top, five of its pages with frames of the hole
  heap.place(10 * kPage);                   // in the hole, so those five are blocked
  heap.check();
  heap.place(15 * kPage);
  heap.place(15 * kPage);
  CHECK(heap.resident() == 41 * kPage);
  heap.check();
}

TEST_CASE("no size is too large to be refused") {
  Placing heap;
  heap.place(kPage);
  Arena::Block* hole = heap.place(kPage);
  heap.place(512);
  heap.arena.free(hole);
  const Bytes top = heap.arena.top();
  std::vector<Bytes> sizes = {(kPages - kFirst) * kPage, (kPages + 1) * kPage};
  for (int power = 30; power < 64; ++power)
    for (Bytes off : {Bytes{0}, Bytes{1}, ~Bytes{0}}) sizes.push_back((Bytes{1} << power) + off);
  for (Bytes back = 0; back < 1025; ++back) sizes.push_back(~Bytes{0} - back);
  for (Bytes bytes : sizes) {
    Arena::Block* block = nullptr;
    CHECK(heap.arena.allocate(bytes, &block) != Status::ok);
    CHECK((heap.arena.top() == top && heap.holes().size() == 1));
  }
  heap.check();
}

TEST_CASE("addresses that run out are told from memory that does") {
  Placing full(kPages);
  CHECK(full.place((kPages - kFirst) * kPage) != nullptr);
  Arena::Block* block = nullptr;
  CHECK(full.arena.allocate(512, &block) == Status::not_supported);
  full.check();
  Placing small(8);
  CHECK(small.arena.allocate(9 * kPage, &block) == Status::out_of_memory);
  CHECK((small.arena.top() == kFirst * kPage && small.arena.first_block() == nullptr));
  small.check();
}

TEST_CASE("a refused placement leaves the arena as it was") {
  Placing heap;
  Arena::Block* hole = heap.place(3 * kPage + 512);
  heap.place(512);
  heap.arena.free(hole);
  for (DriverCall call : {DriverCall::create, DriverCall::map, DriverCall::allow_access}) {
    const std::map<Bytes, Bytes> holes = heap.holes();
    const Bytes top = heap.arena.top(), highest = heap.arena.highest();
    heap.model.fail(call, 1, Status::failed);
    Arena::Block* block = nullptr;
    CHECK((heap.arena.allocate(20 * kPage, &block) == Status::failed && block == nullptr));
    heap.residency.return_left_behind();
    CHECK((heap.holes() == holes && heap.arena.top() == top && heap.arena.highest() == highest));
    heap.check();
  }
  heap.place(20 * kPage);
  heap.check();
}

TEST_CASE("an address finds its block") {
  Placing heap;
  Arena::Block* first = heap.place(700);
  Arena::Block* large = heap.place(5 * kPage);
  Arena::Block* last = heap.place(512);
  CHECK((heap.arena.at(first->offset) == first && heap.arena.at(large->offset) == large));
  CHECK((heap.arena.at(first->offset + 512) == nullptr && heap.arena.at(last->end()) == nullptr));
  CHECK(heap.arena.containing(first->offset + 1023) == first);
  CHECK((heap.arena.containing(large->offset) == large && heap.arena.containing(large->end() - 1) == large));
  CHECK((heap.arena.containing(last->offset) == last && heap.arena.containing(last->end()) == nullptr));
  CHECK((heap.arena.containing(kFirst * kPage - 1) == nullptr && heap.arena.containing(0) == nullptr));
  const Bytes inside = large->offset + 2 * kPage;
  heap.arena.free(large);
  CHECK(heap.arena.containing(inside) == nullptr);
}

// Random use against a list of intervals. Whatever the placement rule: a place never makes the heap hold more pages
// than fresh addresses would.
TEST_CASE("random use agrees with a list of intervals") {
  std::mt19937 random(3);
  for (int run = 0; run < 30; ++run) {
    Placing heap(96, 1 + run % 12);
    std::map<Bytes, Arena::Block*> live;
    for (int step = 0; step < 400; ++step) {
      if (live.empty() || random() % 100 < 53) {
        const Bytes shapes[] = {1 + random() % 4096, 512 * (1 + random() % 512), 1 + random() % (6 * kPage),
                                kPage * (1 + random() % 3), kPage / 2};
        const Bytes bytes = shapes[random() % 5];
        const Bytes size = round_up(bytes, kGranularity);
        const Bytes top = heap.arena.top();
        const Residency::Cost fresh =
            top + size <= kPages * kPage ? heap.cost(top, size) : Residency::Cost{false, ~0u, ~0u};
        const std::map<Bytes, Bytes> holes = heap.holes();
        const Bytes resident = heap.resident(), held = heap.held(), idle = held - resident;
        Arena::Block* block = nullptr;
        const Status status = heap.arena.allocate(bytes, &block);
        if (status != Status::ok) {
          CHECK(status != Status::failed);
          CHECK((!fresh.possible || resident / kPage + fresh.resident > 96));
          CHECK((heap.holes() == holes && heap.resident() == resident));
        } else {
          const Bytes fresh_bytes = fresh.resident * kPage;
          CHECK((!fresh.possible || heap.held() - held <= (fresh_bytes > idle ? fresh_bytes - idle : 0)));
          CHECK((block->size == size && block->offset % kGranularity == 0));
          const auto after = live.upper_bound(block->offset);
          CHECK((after == live.end() || block->end() <= after->first));
          CHECK((after == live.begin() || std::prev(after)->second->end() <= block->offset));
          live[block->offset] = block;
        }
      } else {
        auto victim = std::next(live.begin(), static_cast<std::ptrdiff_t>(random() % live.size()));
        heap.arena.free(victim->second);
        live.erase(victim);
      }
      CHECK(heap.arena.live_blocks() == live.size());
      if (step % 8 == 0) heap.check();
    }
    for (const auto& [offset, block] : live) CHECK(heap.arena.at(offset) == block);
    while (!live.empty()) {
      heap.arena.free(live.begin()->second);
      live.erase(live.begin());
    }
    CHECK((heap.arena.top() == kFirst * kPage && heap.resident() == 0));
    heap.check();
  }
}

}  // namespace
