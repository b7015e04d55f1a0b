// A plan: where each large request of a program goes that asks for the same again and again, worked out beforehand
// (poolalloc/plan). Plain data; plan_cursor.h follows it, planned_blocks.h keeps what is placed by it.
//
// The requests of a stream in their order: a beginning, then a cycle that comes again and again. A cycle is some
// periods, each of which asks for the same; blocks that outlive a period get another place in the next.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/types.h"

namespace poolalloc {

struct PlannedRequest {
  static constexpr Bytes kNowhere = ~Bytes{0};
  Bytes size = 0;           // rounded up to kGranularity
  Bytes offset = kNowhere;  // in the plan's addresses; kNowhere: not planned
  friend bool operator==(const PlannedRequest&, const PlannedRequest&) = default;
};

struct StreamPlan {
  DeviceIndex device = 0;
  std::uint32_t stream = 0;  // 0: the default stream; n: the n-th other one that the device's memory is asked for on
  std::vector<PlannedRequest> requests;
  std::uint32_t first = 0;   // request of the cycle; it ends with the last
  std::uint32_t period = 0;  // divides the length of the cycle
  Bytes height = 0;          // the end of the highest block
  friend bool operator==(const StreamPlan&, const StreamPlan&) = default;
};

struct Plan {
  Bytes above = 0;  // only requests larger than this are in it
  std::vector<StreamPlan> streams;
  friend bool operator==(const Plan&, const Plan&) = default;
};

// What a plan may cost beside what the program would take without it: 1/32 of that, and some pages at a start.
constexpr Bytes plan_margin(Bytes bytes) { return bytes / 32 + 4 * kPageBytes; }

// Throws ConfigError for a plan that makes no sense: sizes and offsets that are no multiples of kGranularity or beyond
// its height, a cycle that is none.
void check_plan(const Plan& plan);

}  // namespace poolalloc
