// Rings of pages against sets of pages.
#include "core/backing/alias_rings.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

using namespace poolalloc;

namespace {

constexpr PageIndex kPages = 40;

struct Model {
  std::vector<std::set<PageIndex>> rings;

  std::set<PageIndex>* of(PageIndex page) {
    const auto found =
        std::find_if(rings.begin(), rings.end(), [&](const auto& ring) { return ring.count(page) != 0; });
    return found != rings.end() ? &*found : nullptr;
  }
};

void check_page(const AliasRings& rings, const std::set<PageIndex>& ring, PageIndex page) {
  const auto at = ring.find(page);
  CHECK(rings.next(page) == (at == ring.begin() ? *ring.rbegin() : *std::prev(at)));
  CHECK(rings.alone(page) == (ring.size() == 1));
  std::set<PageIndex> others;
  rings.visit_others(page, [&](PageIndex other) { CHECK(others.insert(other).second); });
  CHECK((others.insert(page).second && others == ring));
  for (PageIndex first = 0; first <= page; ++first) {
    const bool repeats = ring.lower_bound(first) != at;
    CHECK(rings.repeats(page, first) == repeats);
    CHECK((!repeats || rings.next(page) == *std::prev(at)));
  }
}

TEST_CASE("random rings are what sets are") {
  std::mt19937 random(3);
  for (int run = 0; run < 20; ++run) {
    AliasRings rings(kPages);
    Model model;
    for (int step = 0; step < 400; ++step) {
      const PageIndex page = random() % kPages;
      if (std::set<PageIndex>* ring = model.of(page)) {
        rings.leave(page);
        ring->erase(page);
        std::erase_if(model.rings, [](const auto& each) { return each.empty(); });
      } else if (model.rings.empty() || random() % 3 == 0) {
        rings.start(page);
        model.rings.push_back({page});
      } else {
        std::set<PageIndex>& joined = model.rings[random() % model.rings.size()];
        rings.join(page, *std::next(joined.begin(), static_cast<int>(random() % joined.size())));
        joined.insert(page);
      }
      for (const auto& ring : model.rings)
        for (const PageIndex each : ring) check_page(rings, ring, each);
    }
  }
}

TEST_CASE("a range repeats if one of its pages does") {
  AliasRings rings(kPages);
  for (PageIndex page = 0; page < kPages; ++page) rings.start(page);
  rings.leave(30);
  rings.join(30, 7);
  for (PageIndex first = 0; first < kPages; ++first)
    for (PageIndex last = first; last < kPages; ++last)
      CHECK(rings.any_repeats(first, last) == (first <= 7 && 30 <= last));
}

TEST_CASE("the rings of a range are visited page by page") {
  AliasRings rings(kPages);
  for (PageIndex page = 10; page < 14; ++page) rings.start(page);
  rings.join(20, 11);
  rings.join(5, 11);
  rings.join(21, 13);
  std::vector<PageIndex> alone, shared, others;
  rings.visit_rings(
      10, 13, [&](PageIndex page, bool is_alone) { (is_alone ? alone : shared).push_back(page); },
      [&](PageIndex other) { others.push_back(other); });
  CHECK(((alone == std::vector<PageIndex>{10, 12}) && (shared == std::vector<PageIndex>{11, 13})));
  CHECK((others == std::vector<PageIndex>{5, 20, 21}));
}

}  // namespace
