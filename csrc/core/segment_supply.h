// Memory of one device in whole allocations of the driver (cuMemAlloc), for devices without virtual memory management.
// What page_supply.h is for pages. Not for what lies inside a segment: segments.h.
#pragma once

#include <atomic>
#include <vector>

#include "core/supply.h"

namespace poolalloc {

// One allocation of the driver. Pages must start at multiples of their size; where the driver's allocations do not,
// what lies before the first page and behind the last serves nobody.
struct Segment {
  Address allocation = 0;
  Bytes bytes = 0;

  Address start() const { return round_up(allocation, kPageBytes); }
  Bytes pages() const { return (allocation + bytes) / kPageBytes - start() / kPageBytes; }
};

class SegmentSupply final : public Supply {
 public:
  using Supply::Supply;

  // A segment that no heap holds, of at least `pages` usable ones: the smallest spare one that will do and has at most
  // `most`, or a new one, of `wanted` pages if the limit and the device have them. On any status but ok there is none:
  // out_of_memory when the limit says so or the device does.
  Status take(Bytes pages, Bytes wanted, Bytes most, Segment* segment);
  // No work touches it any more.
  void give(const Segment& segment);

  using Supply::destroy_spare;
  Bytes destroy_spare(Bytes bytes) override;
  void release_misfits() override { destroy_spare(); }
  Bytes spare_bytes() const override;

 private:
  bool take_spare(Bytes pages, Bytes most, Segment* segment);
  Status make(Bytes pages, Segment* segment);
  Bytes spare_sum() const;

  std::vector<Segment> spare_;
  std::atomic<bool> aligned_{true};  // as far as the driver has shown
};

}  // namespace poolalloc
