// Frames behind pages: what is shared, what is blocked, what a failure leaves, and random use against a naive model.
#include "core/backing/residency.h"

#include <map>
#include <random>
#include <set>

#include "core_rig.h"

using namespace rig;

namespace {

constexpr PageIndex kPages = 64;

struct Pages : Range {
  explicit Pages(std::uint64_t device_pages = 16, std::string_view growth = "tight")
      : Range(device_pages, 0, kPages, growth), blocks(kPages) {}

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
  std::uint32_t leave(std::uint32_t at_most) {
    Residency::Detached detached;
    residency.detach_idle(at_most, &detached);
    return rig::leave(residency, detached);
  }
  void check() const {
    residency.validate(blocks);
    check_accounts();
  }

  std::vector<std::uint32_t> blocks;  // that overlap a page
};

// A service frees some thousand blocks a second, and where it needs the driver no more nobody looks how far a stream
// has come: a clock of 32 bits comes round within days, and then what is in use would seem to have been idle for long.
static_assert(Residency::Tick(1) << 48 != 0, "the clock outlives the process");

TEST_CASE("a page stays mapped when its last block goes and costs nothing to use again") {
  Pages pages;
  CHECK(pages.acquire(3, 5) == Status::ok);
  CHECK(pages.acquire(5, 5) == Status::ok);
  CHECK(pages.resident() == 3 * kPage);
  const PhysicalHandle handle = pages.under(5);
  pages.release(3, 5);
  CHECK((pages.resident() == kPage && pages.held() == 3 * kPage));
  CHECK((pages.residency.ready(3) && !pages.residency.ready(5)));
  pages.release(5, 5);
  pages.check();
  const std::uint64_t calls = mapping_calls(pages.driver);
  CHECK((pages.residency.cost(3, 5).maps == 0 && pages.residency.cost(3, 5).resident == 3));
  CHECK(pages.acquire(3, 5) == Status::ok);
  CHECK((mapping_calls(pages.driver) == calls && pages.under(5) == handle));
  pages.check();
}

TEST_CASE("an empty page takes the frame that has been idle longest") {
  Pages pages;
  for (PageIndex page = 0; page < 3; ++page) CHECK(pages.acquire(page, page) == Status::ok);
  const PhysicalHandle oldest = pages.under(1);
  pages.release(1, 1);
  pages.release(0, 0);
  pages.release(2, 2);
  CHECK(pages.acquire(10, 10) == Status::ok);
  CHECK((pages.under(10) == oldest && pages.under(1) == oldest));  // mapped twice, created once
  CHECK((pages.residency.aliased() == 1 && pages.residency.mappings() == 4));
  CHECK(pages.model.used_bytes(0) == 3 * kPage);
  pages.check();
}

TEST_CASE("a page whose frame is live elsewhere is blocked until that ends") {
  Pages pages;
  CHECK(pages.acquire(0, 0) == Status::ok);
  pages.release(0, 0);
  CHECK(pages.acquire(9, 9) == Status::ok);
  CHECK((pages.residency.blocked(0) && !pages.residency.ready(0)));
  CHECK((!pages.residency.cost(0, 0).possible && !pages.residency.cost(0, 3).possible));
  pages.check();
  pages.release(9, 9);
  CHECK((pages.residency.ready(0) && pages.residency.ready(9)));
  CHECK(pages.acquire(0, 0) == Status::ok);
  CHECK(pages.residency.blocked(9));
  pages.check();
}

TEST_CASE("two pages of one placement never share a frame") {
  Pages pages;
  CHECK(pages.acquire(0, 0) == Status::ok);
  pages.release(0, 0);
  CHECK(pages.acquire(5, 5) == Status::ok);  // aliases the frame of page 0
  pages.release(5, 5);
  CHECK((pages.residency.ready(0) && pages.residency.ready(5)));
  CHECK((pages.residency.cost(0, 4).possible && pages.residency.cost(1, 5).possible));
  CHECK(!pages.residency.cost(0, 5).possible);
}

TEST_CASE("frames ready in a range are not taken for its empty pages") {
  Pages pages;
  CHECK(pages.acquire(4, 4) == Status::ok);
  const PhysicalHandle handle = pages.under(4);
  pages.release(4, 4);
  CHECK(pages.acquire(2, 6) == Status::ok);
  CHECK(pages.under(4) == handle);
  std::set<PhysicalHandle> distinct;
  for (PageIndex page = 2; page <= 6; ++page) distinct.insert(pages.under(page));
  CHECK(distinct.size() == 5);
  pages.check();
}

TEST_CASE("access is granted once a run not once a page") {
  Pages pages;
  CHECK(pages.acquire(6, 6) == Status::ok);
  pages.release(6, 6);
  const std::uint64_t before = pages.driver.calls(DriverCall::allow_access);
  CHECK(pages.acquire(2, 9) == Status::ok);
  CHECK(pages.driver.calls(DriverCall::allow_access) == before + 2);  // 2 - 5 and 7 - 9
  pages.check();
}

TEST_CASE("a frame keeps its latest aliases and loses the others once their work has completed") {
  Pages pages;
  const auto visit = [&](PageIndex page) {  // the only idle frame is mapped there
    CHECK(pages.acquire(page, page) == Status::ok);
    pages.release(page, page);
    pages.check();
  };
  pages.residency.permit(PageTable::Source::any, true);
  for (PageIndex page = 0; page < 20; ++page) visit(page);
  CHECK((pages.held() == kPage && pages.residency.mappings() == 20));  // work of all of them may be running
  CHECK(pages.driver.calls(DriverCall::unmap) == 0);
  pages.residency.set_completed(pages.residency.tick());
  for (PageIndex page = 20; page < 40; ++page) {
    visit(page);
    pages.residency.set_completed(pages.residency.tick());
  }
  CHECK(pages.residency.mappings() == 20);  // one goes for each that comes
  for (PageIndex page = 0; page < 20; ++page) CHECK(pages.under(page) == 0);
  Pages bounded;
  bounded.residency.permit(PageTable::Source::any, true);
  for (PageIndex page = 0; page < 20; ++page) {
    CHECK(bounded.acquire(page, page) == Status::ok);
    bounded.release(page, page);
    bounded.residency.set_completed(bounded.residency.tick());
  }
  CHECK(bounded.residency.mappings() == Residency::kMaxAliases);
  for (PageIndex page = 20 - Residency::kMaxAliases; page < 20; ++page) CHECK(bounded.residency.ready(page));
  bounded.check();
}

TEST_CASE("two ready pages of one frame cost a mapping once its work has completed") {
  Pages pages;
  CHECK(pages.acquire(0, 0) == Status::ok);
  pages.release(0, 0);
  CHECK(pages.acquire(2, 2) == Status::ok);  // aliases the frame of page 0
  pages.release(2, 2);
  CHECK((pages.acquire(1, 1) == Status::ok && pages.residency.cost(0, 2).possible == false));
  pages.release(1, 1);
  pages.residency.permit(PageTable::Source::any, true);
  pages.residency.set_completed(pages.residency.tick());
  const Residency::Cost cost = pages.residency.cost(0, 2);
  CHECK((cost.possible && cost.maps == 2 && cost.resident == 3));
  CHECK(pages.acquire(0, 2) == Status::ok);
  CHECK((pages.under(0) != pages.under(1) && pages.under(1) != pages.under(2) && pages.under(0) != pages.under(2)));
  CHECK(pages.held() == 3 * kPage);
  pages.check();
}

TEST_CASE("without leave to grow only idle frames are used") {
  Pages pages;
  CHECK(pages.acquire(0, 1) == Status::ok);
  pages.release(0, 1);
  pages.residency.permit(PageTable::Source::none, true);
  CHECK(pages.acquire(10, 11) == Status::ok);
  CHECK(pages.acquire(20, 20) == Status::out_of_memory);
  pages.residency.permit(PageTable::Source::any, true);
  CHECK(pages.acquire(20, 20) == Status::ok);
  pages.check();
}

// Every driver call of a placement that has ready, resident, aliased and new pages, failed in turn.
TEST_CASE("a failure half way leaves nothing changed") {
  for (DriverCall call : {DriverCall::create, DriverCall::map, DriverCall::allow_access}) {
    for (Status status : {Status::failed, Status::out_of_memory}) {
      int failures = 0;
      for (std::uint64_t nth = 1;; ++nth) {
        Pages pages;
        CHECK(pages.acquire(10, 10) == Status::ok);
        CHECK(pages.acquire(30, 31) == Status::ok);
        pages.release(30, 31);
        CHECK(pages.acquire(14, 14) == Status::ok);  // aliases the frame of page 30
        pages.release(14, 14);
        CHECK(pages.acquire(40, 40) == Status::ok);
        const Residency::Cost cost = pages.residency.cost(10, 19);
        std::map<PageIndex, PhysicalHandle> under;
        for (PageIndex page = 0; page < kPages; ++page) under[page] = pages.under(page);
        const Bytes held = pages.held(), resident = pages.resident();
        const std::int64_t resident_peak = pages.residency.resident().peak;
        const std::uint64_t mappings = pages.residency.mappings(), aliased = pages.residency.aliased();

        pages.model.fail(call, nth, status);
        const Status got = pages.acquire(10, 19);
        if (got == Status::ok) break;  // fewer than nth calls were made
        ++failures;
        CHECK(got == status);
        CHECK(pages.driver.calls(DriverCall::unmap) == 0);  // a capture may be going on
        pages.residency.return_left_behind();
        pages.check();
        for (PageIndex page = 0; page < kPages; ++page) CHECK(under[page] == pages.under(page));
        CHECK((pages.held() == held && pages.resident() == resident));
        CHECK(pages.residency.resident().peak == resident_peak);
        CHECK((pages.residency.mappings() == mappings && pages.residency.aliased() == aliased));
        const Residency::Cost again = pages.residency.cost(10, 19);
        CHECK((again.possible && again.resident == cost.resident && again.maps == cost.maps));
        CHECK(pages.acquire(10, 19) == Status::ok);
        pages.check();
      }
      CHECK(failures > 1);
    }
  }
}

TEST_CASE("a device that is full leaves nothing changed") {
  Pages pages(8);
  CHECK(pages.acquire(0, 3) == Status::ok);
  const std::uint64_t mappings = pages.residency.mappings();
  CHECK(pages.acquire(10, 14) == Status::out_of_memory);
  CHECK((pages.residency.mappings() == mappings && pages.held() == 4 * kPage));
  pages.check();
  CHECK(pages.acquire(10, 13) == Status::ok);
  pages.check();
}

TEST_CASE("detached frames are unusable at once and spare when returned") {
  Pages pages;
  CHECK(pages.acquire(0, 3) == Status::ok);
  pages.release(0, 2);
  CHECK(pages.acquire(8, 8) == Status::ok);  // aliases one of the three
  pages.release(8, 8);
  Residency::Detached detached;
  pages.residency.detach_idle(2, &detached);
  CHECK((pages.residency.idle_frames() == 1 && pages.held() == 4 * kPage));
  for (const Residency::Leaving& leaving : detached) {
    CHECK((pages.residency.blocked(leaving.page) && !pages.residency.ready(leaving.page)));
    CHECK(pages.under(leaving.page) != 0);  // still mapped: work may be running there
  }
  pages.residency.validate(pages.blocks);
  CHECK(rig::leave(pages.residency, detached) == 2);
  for (const Residency::Leaving& leaving : detached)
    CHECK((pages.under(leaving.page) == 0 && !pages.residency.blocked(leaving.page)));
  CHECK(pages.supply.spare_bytes() == 2 * kPage);
  pages.check();
  CHECK((pages.leave(~0u) == 1 && pages.held() == kPage));
}

TEST_CASE("detaching what blocks frees addresses and no memory") {
  Pages pages;
  CHECK(pages.acquire(0, 0) == Status::ok);
  pages.release(0, 0);
  CHECK(pages.acquire(5, 5) == Status::ok);
  CHECK(pages.residency.blocked(0));
  const PhysicalHandle handle = pages.under(5);
  Residency::Detached detached;
  pages.residency.detach_blocked(&detached);
  CHECK((detached.size() == 1 && detached[0].page == 0));
  CHECK(rig::leave(pages.residency, detached) == 0);
  CHECK((!pages.residency.blocked(0) && pages.under(0) == 0 && pages.under(5) == handle));
  CHECK((pages.held() == kPage && pages.residency.mappings() == 1));
  pages.check();
}

TEST_CASE("what the driver refuses to unmap stays held and leaves later") {
  for (std::uint64_t nth = 1; nth <= 4; ++nth) {
    Pages pages;
    CHECK(pages.acquire(0, 2) == Status::ok);
    pages.release(0, 2);
    CHECK(pages.acquire(8, 8) == Status::ok);  // one frame has two pages
    pages.release(8, 8);
    pages.model.fail(DriverCall::unmap, nth, Status::failed);
    CHECK(pages.leave(~0u) == 2);
    CHECK((pages.held() == kPage && pages.residency.mappings() == 1 && pages.residency.idle_frames() == 0));
    pages.supply.destroy_spare();
    CHECK(pages.model.used_bytes(0) == kPage);
    pages.residency.validate(pages.blocks);
    pages.residency.return_left_behind();
    CHECK((pages.held() == 0 && pages.residency.mappings() == 0 && pages.supply.spare_bytes() == kPage));
    pages.check();
  }
}

TEST_CASE("what was postponed leaves with the next") {
  Pages pages;
  CHECK(pages.acquire(0, 3) == Status::ok);
  pages.release(0, 3);
  Residency::Detached detached;
  pages.residency.detach_idle(2, &detached);
  pages.residency.postpone(detached);
  CHECK((pages.residency.idle_frames() == 2 && pages.held() == 4 * kPage));
  pages.residency.validate(pages.blocks);
  CHECK((pages.leave(0) == 2 && pages.held() == 2 * kPage));
  pages.check();
}

TEST_CASE("return all unmaps everything and keeps no frame") {
  Pages pages;
  CHECK(pages.acquire(0, 5) == Status::ok);
  pages.release(2, 5);
  CHECK(pages.acquire(20, 22) == Status::ok);
  pages.residency.return_all();
  for (PageIndex page = 0; page < kPages; ++page) CHECK(pages.under(page) == 0);
  CHECK(pages.supply.spare_bytes() == pages.model.used_bytes(0));
  CHECK(pages.model.violations() == 0);
}

// --- loans ----------------------------------------------------------------------------------------------------------

std::vector<PhysicalHandle> under_pages(const Pages& pages, PageIndex first, PageIndex last) {
  std::vector<PhysicalHandle> handles;
  for (PageIndex page = first; page <= last; ++page) handles.push_back(pages.under(page));
  return handles;
}

TEST_CASE("a frame on loan keeps its mappings and comes back without the driver") {
  Pages pages;
  CHECK(pages.acquire(0, 3) == Status::ok);
  const std::vector<PhysicalHandle> frames = under_pages(pages, 0, 3);
  pages.release(0, 3);
  pages.residency.set_completed(pages.residency.tick());
  const std::uint64_t calls = mapping_calls(pages.driver);
  CHECK(pages.residency.lend(pages.residency.completed(), 3) == 3);
  CHECK((pages.held() == kPage && pages.supply.spare_bytes() == 3 * kPage && pages.residency.mappings() == 4));
  CHECK(under_pages(pages, 0, 3) == frames);
  pages.check();
  pages.residency.permit(PageTable::Source::back, true);
  const PageTable::Cost cost = pages.residency.cost(0, 3);
  CHECK((cost.possible && cost.maps == 0 && cost.back == 3 && cost.resident == 4));
  CHECK((pages.acquire(0, 3) == Status::out_of_memory && pages.residency.wanted().size() == 3));
  pages.residency.take_back(pages.residency.wanted());
  CHECK((pages.acquire(0, 3) == Status::ok && under_pages(pages, 0, 3) == frames));
  CHECK((mapping_calls(pages.driver) == calls && pages.supply.spare_bytes() == 0));
  pages.check();
}

TEST_CASE("only what no work uses any more goes on loan") {
  Pages pages;
  CHECK((pages.acquire(0, 0) == Status::ok && pages.acquire(1, 1) == Status::ok && pages.acquire(2, 2) == Status::ok));
  const std::vector<PhysicalHandle> frames = under_pages(pages, 0, 2);
  pages.release(0, 0);
  pages.residency.set_completed(pages.residency.tick());
  pages.release(1, 1);
  bool running = false;
  CHECK((pages.residency.lend_these({frames[1], frames[2]}, &running) == 0 && running));  // running, and live
  CHECK((pages.residency.lend(pages.residency.completed(), 3) == 1 && pages.residency.away(frames[0])));
  pages.residency.set_completed(pages.residency.tick());
  running = false;
  CHECK((pages.residency.lend_these(frames, &running) == 1 && !running));
  CHECK((pages.residency.away(frames[1]) && !pages.residency.away(frames[2])));
  pages.check();
}

TEST_CASE("a frame that went elsewhere is replaced where it was mapped") {
  Pages pages;
  CHECK(pages.acquire(0, 1) == Status::ok);
  const std::vector<PhysicalHandle> frames = under_pages(pages, 0, 1);
  pages.release(0, 1);
  pages.residency.set_completed(pages.residency.tick());
  CHECK(pages.residency.lend(pages.residency.completed(), 2) == 2);
  CHECK(pages.supply.take_these({frames[0]}));  // by another heap
  pages.residency.take_back(frames);            // half of it is there
  CHECK((pages.residency.ready(1) && pages.residency.blocked(0)));
  pages.residency.permit(PageTable::Source::any, true);
  CHECK(pages.residency.cost(0, 1).maps == 1);
  CHECK((pages.acquire(0, 1) == Status::ok && pages.under(0) != frames[0] && pages.under(1) == frames[1]));
  CHECK(!pages.residency.away(frames[0]));  // no mapping is left
  pages.supply.give({frames[0], 1});
  pages.check();
}

TEST_CASE("a spare frame that is mapped somewhere else comes back there too") {
  Pages pages;
  CHECK(pages.acquire(0, 0) == Status::ok);
  pages.release(0, 0);
  pages.residency.set_completed(pages.residency.tick());
  CHECK(pages.residency.lend(pages.residency.completed(), 1) == 1);
  CHECK((pages.acquire(9, 9) == Status::ok && pages.under(9) == pages.under(0)));
  CHECK((pages.residency.blocked(0) && pages.held() == kPage && pages.residency.mappings() == 2));
  pages.check();
  pages.release(9, 9);
  CHECK((pages.residency.ready(0) && pages.residency.ready(9)));
  pages.check();
}

// Random placements, as an arena would make them, against two facts: live data never moves and never shares.
void end_loans_and_destroy(Pages& pages) {
  std::vector<PhysicalHandle> frames;
  const std::vector<PhysicalSpan> spare = pages.supply.spare();
  for (const PhysicalSpan& span : spare) frames.push_back(span.handle);
  if (!pages.supply.take_these(frames)) return;
  Residency::Detached detached;
  pages.residency.detach_lent(frames, &detached);
  rig::leave(pages.residency, detached);
  for (const PhysicalSpan& span : spare) pages.supply.give(span);
  const bool all = std::all_of(detached.begin(), detached.end(), [](const auto& each) { return each.unmapped; });
  if (all) pages.supply.destroy_spare();
}

void use_at_random(std::string_view growth) {
  std::mt19937 random(11);
  constexpr std::uint64_t kDevice = 20;
  for (int run = 0; run < 400; ++run) {
    Pages pages(kDevice, growth);
    struct Placed {
      PageIndex first, last;
    };
    std::vector<Placed> placed;
    using Memory = std::map<PageIndex, std::pair<PhysicalHandle, Bytes>>;
    Memory live;
    std::set<PhysicalHandle> seen;
    for (int step = 0; step < 400; ++step) {
      if (random() % 8 == 0) pages.residency.permit(PageTable::Source::any, random() % 2 == 0);
      if (random() % 8 == 0) pages.residency.set_completed(pages.residency.tick());
      const unsigned what = random() % 11;
      if (what < 5) {
        const PageIndex first = random() % kPages;
        const PageIndex last = std::min<PageIndex>(kPages - 1, first + random() % 6);
        bool overlap = false;  // blocks share outer pages only
        for (PageIndex page = first + 1; page < last; ++page) overlap |= pages.blocks[page] != 0;
        for (const Placed& other : placed)
          for (PageIndex page : {first, last}) overlap |= page > other.first && page < other.last;
        const Residency::Cost cost = pages.residency.cost(first, last);
        if (!cost.possible || overlap) continue;
        const Status status = pages.acquire(first, last);
        // Frames on their way out are of no use to a placement.
        const Bytes leaving = pages.held() / kPage - pages.residency.idle_frames() - pages.resident() / kPage;
        const bool refused = status == Status::failed && pages.residency.cost(first, last).possible;  // to unmap
        const bool in_pieces = growth != "tight" && status == Status::out_of_memory;  // what is idle may not fit
        CHECK((status == Status::ok || refused || in_pieces || live.size() + leaving + cost.resident > kDevice));
        if (status == Status::ok) placed.push_back({first, last});
      } else if (what < 9 && !placed.empty()) {
        std::swap(placed[random() % placed.size()], placed.back());
        pages.release(placed.back().first, placed.back().last);
        placed.pop_back();
      } else if (what == 9) {
        Residency::Detached detached;
        if (random() % 2 == 0) pages.model.fail(DriverCall::unmap, 1 + random() % 6, Status::failed);
        if (random() % 2 == 0)
          pages.residency.detach_idle(random() % 4, &detached);
        else
          pages.residency.detach_blocked(&detached);
        pages.residency.validate(pages.blocks);
        if (random() % 4 == 0)
          pages.residency.postpone(detached);
        else
          rig::leave(pages.residency, detached);
        if (random() % 2 == 0) pages.residency.return_left_behind();
        if (random() % 2 == 0) end_loans_and_destroy(pages);
      } else if (what == 10) {
        for (PageIndex page = 0; page < kPages; ++page)
          if (pages.under(page) != 0) seen.insert(pages.under(page));
        const std::vector<PhysicalHandle> some(seen.begin(), seen.end());
        bool running = false;
        if (random() % 2 == 0) pages.residency.lend(pages.residency.completed(), random() % 4);
        if (random() % 4 == 0) pages.residency.lend_these(some, &running);
        if (random() % 3 == 0) pages.residency.take_back(some);
      }
      pages.check();
      Memory now;
      std::set<std::pair<PhysicalHandle, Bytes>> distinct;
      for (PageIndex page = 0; page < kPages; ++page) {
        if (pages.blocks[page] == 0) continue;
        now[page] = pages.memory_under(page);
        CHECK((now[page].first != 0 && distinct.insert(now[page]).second));
        CHECK((!live.contains(page) || live[page] == now[page]));
      }
      CHECK(pages.resident() == now.size() * kPage);
      live = std::move(now);
    }
  }
}

TEST_CASE("random use never shares or moves what is live") { use_at_random("tight"); }
TEST_CASE("random use of spans never shares or moves what is live") { use_at_random("balanced"); }

// --- spans -------------------------------------------------------------------------------------------------------

TEST_CASE("a run of pages is one handle and one mapping") {
  Pages pages(64, "balanced");
  CHECK(pages.acquire(0, 29) == Status::ok);
  CHECK((pages.driver.calls(DriverCall::create) == 1 && pages.driver.calls(DriverCall::map) == 1));
  CHECK(pages.memory_under(29) == std::pair(pages.under(0), Bytes{29}));
  pages.check();
}

TEST_CASE("growth takes a little more than is needed while more blocks are expected") {
  Pages pages(64, "balanced");
  CHECK((pages.acquire(0, 31) == Status::ok && pages.held() == 32 * kPage));   // the first: just what is needed
  CHECK((pages.acquire(32, 32) == Status::ok && pages.held() == 33 * kPage));  // a small heap: so again
  pages.residency.expect_more(true);
  CHECK(pages.acquire(33, 33) == Status::ok);
  CHECK((pages.held() == 37 * kPage && pages.residency.ready(34)));  // an eighth
  const std::uint64_t calls = mapping_calls(pages.driver);
  CHECK((pages.acquire(34, 34) == Status::ok && mapping_calls(pages.driver) == calls));
  pages.check();
}

TEST_CASE("the idle pages of a span that is live in part serve elsewhere through another alias") {
  Pages pages(24, "balanced");
  CHECK(pages.acquire(0, 23) == Status::ok);  // all of the device, in one span
  pages.release(0, 23);
  CHECK(pages.acquire(23, 23) == Status::ok);
  CHECK(pages.acquire(30, 50) == Status::ok);  // 21 of the other 23
  CHECK((pages.driver.calls(DriverCall::create) == 1 && pages.driver.calls(DriverCall::map) == 2));
  CHECK((pages.residency.blocked(0) && pages.memory_under(30).first == pages.under(23)));
  pages.check();
  pages.release(30, 50);
  CHECK((pages.residency.ready(0) && pages.residency.ready(30)));
  pages.check();
}

TEST_CASE("only spans that are wholly idle leave") {
  Pages pages(64, "balanced");
  CHECK((pages.acquire(0, 19) == Status::ok && pages.acquire(40, 55) == Status::ok));
  pages.release(0, 19);
  pages.release(40, 55);
  CHECK(pages.acquire(3, 3) == Status::ok);
  CHECK(pages.leave(64) == 16);
  CHECK((pages.held() == 20 * kPage && pages.residency.ready(0)));
  pages.check();
}

TEST_CASE("where a chunk does not fit the limit just what is needed is made") {
  Pages pages(64, "balanced");
  pages.holdings.set_limit(3 * kPage);
  CHECK((pages.acquire(0, 1) == Status::ok && pages.held() == 2 * kPage));
  CHECK((pages.acquire(10, 10) == Status::ok && pages.held() == 3 * kPage));
  CHECK(pages.acquire(20, 20) == Status::out_of_memory);
  pages.check();
}

TEST_CASE("a failure half way through spans leaves nothing changed") {
  for (DriverCall call : {DriverCall::create, DriverCall::map, DriverCall::allow_access}) {
    Pages pages(64, "balanced");
    CHECK(pages.acquire(10, 17) == Status::ok);
    const Bytes held = pages.held();
    const std::uint64_t mappings = pages.residency.mappings();
    pages.model.fail(call, 1, Status::failed);
    CHECK(pages.acquire(30, 50) == Status::failed);
    pages.residency.return_left_behind();
    CHECK((pages.held() == held && pages.residency.mappings() == mappings));
    pages.check();
    CHECK(pages.acquire(30, 50) == Status::ok);
    pages.check();
  }
}

}  // namespace
