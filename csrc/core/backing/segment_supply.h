// Memory of one device in whole allocations: of the driver (cuMemAlloc), for devices without virtual memory management,
// or of an allocator that a pool brought with it. What page_supply.h is for pages. Not for what lies inside a segment:
// segments.h.
#pragma once

#include <atomic>
#include <vector>

#include "core/backing/segment_source.h"
#include "core/backing/supply.h"

namespace poolalloc {

// One allocation. Pages must start at multiples of their size; where allocations do not, what lies before the first
// page and behind the last serves nobody.
struct Segment {
  Address allocation = 0;
  Bytes bytes = 0;

  Address start() const { return round_up(allocation, kPageBytes); }
  Bytes pages() const { return (allocation + bytes) / kPageBytes - start() / kPageBytes; }
};

// In usable pages: so many will do, a new segment better has `wanted`, and a spare one no more than `most`.
struct SegmentNeed {
  Bytes pages = 0, wanted = 0, most = 0;
};

class SegmentSupply final : public Supply {
 public:
  // Without a source, the driver is the source.
  SegmentSupply(Driver& driver, DeviceIndex device, Holdings& holdings, SegmentSource* source = nullptr)
      : Supply(driver, device, holdings), source_(source) {}

  // A segment that no heap holds: the smallest spare one that will do, or a new one, as large as wanted if the limit
  // and the device have that. On any status but ok there is none: out_of_memory when the limit says so or the device
  // does; not_ready where a source must be asked first.
  Status take(const SegmentNeed& need, Segment* segment);
  // A new spare segment like that, from the source: called under no lock. Throws what the source throws.
  Status ask(const SegmentNeed& need, StreamId stream);
  // No work touches it any more.
  void give(const Segment& segment);

  // As PageSupply's, by segments.
  Bytes destroy_spare(Bytes bytes = ~Bytes{0}) noexcept;
  Bytes spare_bytes() const;

 private:
  bool take_spare(const SegmentNeed& need, Segment* segment);
  Status make_wanted(const SegmentNeed& need, StreamId stream, Segment* segment);
  Status make(Bytes pages, StreamId stream, Segment* segment);
  Status allocate(Bytes bytes, StreamId stream, Segment* segment);
  bool free(const Segment& segment);
  Bytes spare_sum() const;

  SegmentSource* const source_;  // null: the driver
  std::vector<Segment> spare_;
  std::atomic<bool> aligned_{true};  // as far as the source has shown
};

}  // namespace poolalloc
