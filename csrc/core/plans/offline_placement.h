// Offline placement: where blocks go whose sizes and lifetimes are all known, so that the highest address is low. That
// is dynamic storage allocation, NP-hard; the answer is the best of several heuristics within a time budget:
//
//   first fit          each block at its lowest free offset, in order of size, area, lifetime, or birth
//   reordering         the blocks that reach the top move ahead in the order, first fit again (squeaky-wheel
//                      optimization, Joslin and Clements, 1999)
//   search             depth first over placements in order of offset, for a given height, cutting off what cannot hold
//                      (after MiniMalloc, Moffitt, ASPLOS 2023); only where every block has one lifetime
//
// No height is below the load, the most bytes alive at one time. Pure arithmetic: not for memory, see arena.h.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "core/base/types.h"

namespace poolalloc {

// Alive in [birth, death), in any unit of time. size > 0, birth < death.
struct Lifetime {
  std::int64_t birth = 0;
  std::int64_t death = 0;
  Bytes size = 0;
  std::int64_t group = -1;  // those with the same number, if it is not negative, are one block and get one offset
};

struct OfflinePlacement {
  std::vector<Bytes> offsets;  // of each lifetime, in the order given
  Bytes height = 0;            // the highest end
  Bytes load = 0;              // no placement has a smaller height
  const char* method = "";     // that found it
};

struct PlacementEffort {
  std::chrono::nanoseconds time{std::chrono::seconds(1)};  // the first-fit orders are tried in any case
  std::uint64_t seed = 1;
  Bytes enough = 0;  // a height to be content with; the load if smaller
};

// Throws UsageError on a lifetime that ends before it begins, a size of 0, or a group of two sizes.
POOLALLOC_API OfflinePlacement place_offline(const std::vector<Lifetime>& lifetimes, const PlacementEffort& effort);

}  // namespace poolalloc
