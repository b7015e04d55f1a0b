// Holes by size and address against a sorted set.
#include "core/placement/hole_index.h"

#include <doctest/doctest.h>

#include <random>
#include <set>
#include <vector>

using namespace poolalloc;

namespace {

struct Hole {
  Bytes offset = 0, size = 0;
  Hole *left = nullptr, *right = nullptr, *smaller = nullptr, *larger = nullptr;
  std::uint32_t priority = 0;
};
struct BySize {
  bool operator()(const Hole* a, const Hole* b) const {
    return a->size != b->size ? a->size < b->size : a->offset < b->offset;
  }
};
using Expected = std::set<Hole*, BySize>;

void check_order(const HoleIndex<Hole>& index, const Expected& expected) {
  CHECK((index.valid() && index.count() == expected.size()));
  Hole* hole = index.at_least(kGranularity);
  for (Hole* each : expected) {
    CHECK(hole == each);
    hole = hole->larger;
  }
  CHECK(hole == nullptr);
}

// Sizes in granules up to this, so few classes with many holes, or many with few.
void check_random_changes(std::uint64_t largest) {
  std::mt19937_64 random(5);
  std::vector<Hole> holes(200);
  for (std::size_t i = 0; i < holes.size(); ++i) holes[i].offset = i * kPageBytes;
  HoleIndex<Hole> index;
  Expected expected;
  for (int step = 0; step < 4000; ++step) {
    Hole* hole = &holes[random() % holes.size()];
    if (expected.erase(hole) != 0) {
      index.remove(hole);
    } else {
      hole->size = (1 + random() % (Bytes{1} << random() % 64 % largest)) * kGranularity;
      index.insert(hole);
      expected.insert(hole);
    }
    Hole wanted;
    wanted.size = (1 + random() % (Bytes{1} << largest)) * kGranularity;
    const auto found = expected.lower_bound(&wanted);
    CHECK(index.at_least(wanted.size) == (found != expected.end() ? *found : nullptr));
    if (step % 16 == 0) check_order(index, expected);
  }
}

TEST_CASE("random holes of few sizes") { check_random_changes(3); }
TEST_CASE("random holes of all sizes") { check_random_changes(33); }

TEST_CASE("an empty index has no hole") {
  HoleIndex<Hole> index;
  CHECK((index.valid() && index.count() == 0 && index.at_least(kGranularity) == nullptr));
}

}  // namespace
