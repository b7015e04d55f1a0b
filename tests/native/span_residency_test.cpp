// Spans behind pages: one handle for many pages, live by page through one of its aliases, and random use against two
// facts: live data never moves and never shares.
#include "core/residency.h"

#include <map>
#include <random>
#include <set>

#include "core/arena.h"
#include "core_rig.h"
#include "growing.h"

using namespace rig;

namespace {

constexpr PageIndex kPages = 64;

struct Spans {
  explicit Spans(std::uint64_t device_pages = 64, PageIndex pages = kPages)
      : model(device_of(device_pages)),
        driver(model),
        supply(driver, 0, holdings),
        residency(driver, 0, supply, reserve(pages * kPage), 0, pages, growing("balanced")),
        blocks(pages) {}

  Address reserve(Bytes bytes) {
    Address address = 0;
    CHECK(driver.reserve(0, bytes, kPage, &address) == Status::ok);
    return address;
  }
  Status acquire(PageIndex first, PageIndex last) {
    const Status status = residency.acquire(first, last);
    if (status == Status::ok)
      for (PageIndex page = first; page <= last; ++page) ++blocks[page];
    return status;
  }
  void release(PageIndex first, PageIndex last) {
    residency.release(first, last);
    for (PageIndex page = first; page <= last; ++page) --blocks[page];
  }
  std::uint32_t leave(PageTable::Detached& detached) {
    residency.unmap_detached(&detached);
    return residency.return_detached(detached);
  }
  // Which of the pages of which handle lies under a page. {0, 0} if there is none.
  std::pair<PhysicalHandle, Bytes> under(PageIndex page) const {
    PhysicalHandle handle = 0;
    Bytes offset = 0;
    if (!model.physical(0, residency.address_of(page), &handle, &offset)) return {0, 0};
    return {handle, offset / kPage};
  }
  Bytes held() const { return static_cast<Bytes>(residency.held().current); }
  void check() const {
    residency.validate(blocks);
    CHECK(model.violations() == 0);
    CHECK(static_cast<Bytes>(holdings.reserved().current) == model.used_bytes(0));
    CHECK(model.used_bytes(0) == held() + supply.spare_bytes());
  }

  ModelDriver model;
  CountingDriver driver;
  Holdings holdings;
  PageSupply supply;
  Residency residency;
  std::vector<std::uint32_t> blocks;  // that overlap a page
};

TEST(a_run_of_pages_is_one_handle_and_one_mapping) {
  Spans spans;
  CHECK(spans.acquire(0, 29) == Status::ok);
  CHECK(spans.driver.calls(DriverCall::create) == 1 && spans.driver.calls(DriverCall::map) == 1);
  CHECK(spans.under(29) == std::pair(spans.under(0).first, Bytes{29}));
  spans.check();
}

TEST(growth_takes_a_little_more_than_is_needed_so_that_the_next_pages_are_ready) {
  Spans spans;
  CHECK(spans.acquire(0, 3) == Status::ok && spans.held() == 4 * kPage);  // the first: just what is needed
  CHECK(spans.acquire(4, 4) == Status::ok);
  CHECK(spans.held() > 5 * kPage && spans.residency.ready(5));
  const std::uint64_t calls = mapping_calls(spans.driver);
  CHECK(spans.acquire(5, 5) == Status::ok && mapping_calls(spans.driver) == calls);
  spans.check();
}

TEST(the_idle_pages_of_a_span_that_is_live_in_part_serve_elsewhere_through_another_alias) {
  Spans spans(24);
  CHECK(spans.acquire(0, 23) == Status::ok);  // all of the device, in one span
  spans.release(0, 23);
  CHECK(spans.acquire(23, 23) == Status::ok);
  CHECK(spans.acquire(30, 50) == Status::ok);  // 21 of the other 23
  CHECK(spans.driver.calls(DriverCall::create) == 1 && spans.driver.calls(DriverCall::map) == 2);
  CHECK(spans.residency.blocked(0) && spans.under(30).first == spans.under(23).first);
  spans.check();
  spans.release(30, 50);
  CHECK(spans.residency.ready(0) && spans.residency.ready(30));
  spans.check();
}

TEST(only_spans_that_are_wholly_idle_leave) {
  Spans spans;
  CHECK(spans.acquire(0, 19) == Status::ok && spans.acquire(40, 59) == Status::ok);
  spans.release(0, 19);
  spans.release(40, 59);
  CHECK(spans.acquire(3, 3) == Status::ok);
  PageTable::Detached detached;
  spans.residency.detach_idle(64, &detached);
  CHECK(spans.leave(detached) == 20);
  CHECK(spans.held() == 20 * kPage && spans.residency.ready(0));
  spans.check();
}

TEST(where_a_chunk_does_not_fit_the_limit_just_what_is_needed_is_made) {
  Spans spans;
  spans.holdings.set_limit(5 * kPage);
  CHECK(spans.acquire(0, 3) == Status::ok && spans.acquire(4, 4) == Status::ok && spans.held() == 5 * kPage);
  CHECK(spans.acquire(20, 20) == Status::out_of_memory);
  spans.check();
}

TEST(a_failure_half_way_leaves_nothing_changed) {
  for (DriverCall call : {DriverCall::create, DriverCall::map, DriverCall::allow_access}) {
    Spans spans;
    CHECK(spans.acquire(10, 17) == Status::ok);
    const Bytes held = spans.held();
    const std::uint64_t mappings = spans.residency.mappings();
    spans.model.fail(call, 1, Status::failed);
    CHECK(spans.acquire(30, 50) == Status::failed);
    spans.residency.return_left_behind();
    CHECK(spans.held() == held && spans.residency.mappings() == mappings);
    spans.check();
    CHECK(spans.acquire(30, 50) == Status::ok);
    spans.check();
  }
}

TEST(blocks_that_grow_one_by_one_lie_in_one_row) {
  Spans spans(128, 256);
  Arena arena(spans.residency, 0, 8);
  const auto place = [&](Bytes bytes) {
    Arena::Block* block = nullptr;
    CHECK(arena.allocate(bytes, &block) == Status::ok);
    return block;
  };
  std::vector<Arena::Block*> caches;
  Arena::Block* idle = place(40 * kPage);
  for (int i = 0; i < 10; ++i) caches.push_back(place(kPage));
  arena.free(idle);
  Bytes size = kPage;
  for (int step = 0; step < 6; ++step) {
    size += kPage / 32;
    for (Arena::Block*& cache : caches) {  // what a decode step does
      Arena::Block* longer = place(size);
      arena.free(cache);
      cache = longer;
    }
  }
  int neighbours = 0;
  for (std::size_t i = 1; i < caches.size(); ++i) neighbours += caches[i]->offset == caches[i - 1]->end();
  CHECK(neighbours >= 8);
}

TEST(random_use_never_shares_or_moves_what_is_live) {
  std::mt19937 random(11);
  constexpr std::uint64_t kDevice = 20;
  int placements = 0;
  for (int run = 0; run < 200; ++run) {
    Spans spans(kDevice);
    struct Placed {
      PageIndex first, last;
    };
    std::vector<Placed> placed;
    using Memory = std::map<PageIndex, std::pair<PhysicalHandle, Bytes>>;
    Memory live;
    std::set<PhysicalHandle> seen;
    for (int step = 0; step < 300; ++step) {
      if (random() % 8 == 0) spans.residency.permit(PageTable::Source::any, random() % 2 == 0);
      if (random() % 8 == 0) spans.residency.set_completed(spans.residency.tick());
      const unsigned what = random() % 11;
      if (what < 5) {
        const PageIndex first = random() % kPages;
        const PageIndex last = std::min<PageIndex>(kPages - 1, first + random() % 6);
        bool overlap = false;  // blocks share outer pages only
        for (PageIndex page = first + 1; page < last; ++page) overlap |= spans.blocks[page] != 0;
        for (const Placed& other : placed)
          for (PageIndex page : {first, last}) overlap |= page > other.first && page < other.last;
        if (overlap || !spans.residency.cost(first, last).possible) continue;
        if (spans.acquire(first, last) == Status::ok) {
          placed.push_back({first, last});
          ++placements;
        }
      } else if (what < 9 && !placed.empty()) {
        std::swap(placed[random() % placed.size()], placed.back());
        spans.release(placed.back().first, placed.back().last);
        placed.pop_back();
      } else if (what == 9) {
        PageTable::Detached detached;
        if (random() % 2 == 0) spans.model.fail(DriverCall::unmap, 1 + random() % 3, Status::failed);
        if (random() % 2 == 0)
          spans.residency.detach_idle(random() % 4, &detached);
        else
          spans.residency.detach_blocked(&detached);
        spans.residency.validate(spans.blocks);
        if (random() % 4 == 0)
          spans.residency.postpone(detached);
        else
          spans.leave(detached);
        if (random() % 2 == 0) spans.residency.return_left_behind();
      } else if (what == 10) {
        for (PageIndex page = 0; page < kPages; ++page)
          if (spans.under(page).first != 0) seen.insert(spans.under(page).first);
        const std::vector<PhysicalHandle> some(seen.begin(), seen.end());
        bool running = false;
        if (random() % 2 == 0) spans.residency.lend(spans.residency.completed(), random() % 4);
        if (random() % 4 == 0) spans.residency.lend_these(some, &running);
        if (random() % 3 == 0) spans.residency.take_back(some);
      }
      spans.check();
      Memory now;
      std::set<std::pair<PhysicalHandle, Bytes>> distinct;
      for (PageIndex page = 0; page < kPages; ++page) {
        if (spans.blocks[page] == 0) continue;
        now[page] = spans.under(page);
        CHECK(now[page].first != 0 && distinct.insert(now[page]).second);
        CHECK(!live.contains(page) || live[page] == now[page]);
      }
      live = std::move(now);
    }
  }
  CHECK(placements > 2000);
}

}  // namespace
