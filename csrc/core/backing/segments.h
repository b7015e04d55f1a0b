// Memory behind the pages of a heap's range in whole allocations, where the device has no virtual memory management or
// the heap's pool brought an allocator with it: what residency.h is elsewhere.
//
// The range is then only a numbering of pages; a *segment* puts memory behind a run of them, and the heap's addresses
// are the segment's. Every page between segments is a gap: no block lies there, and no two segments touch, so what
// places blocks in the range never makes one that spans two. The first part of the range, for slabs, takes segments of
// one page as its pages are needed; in the second the heap adds them by size and tells the arena (heap.h, arena.h).
// Pages of a segment that are idle stay where they are: they cannot serve another page. A segment whose pages are all
// idle can leave.
//
//   held = segments, resident and idle pages alike, and what misses at their ends to whole pages
//
// Guarded by the heap's lock.
#pragma once

#include <map>
#include <vector>

#include "core/backing/address_table.h"
#include "core/backing/page_table.h"
#include "core/backing/segment_supply.h"

namespace poolalloc {

class Segments final : public PageTable {
 public:
  Segments(SegmentSupply& supply, AddressTable& addresses, Heap& owner, PageIndex split, PageIndex pages,
           PageJournal* journal = nullptr);

  // What a block of so many bytes needs, with room for more like it, or alone.
  static SegmentNeed need_for(Bytes bytes);
  static SegmentNeed need_alone(Bytes bytes);
  // Such a segment, somewhere in the second part. ok: pages first .. end - 1, all idle. not_ready, here and from
  // acquire: the supply must ask its source for need().
  Status add(const SegmentNeed& need, PageIndex* first, PageIndex* end);
  const SegmentNeed& need() const { return need_; }
  // The one in which an address lies; null if none does.
  const Segment* containing(Address address) const;
  // Whether a segment starts at this page.
  bool starts(PageIndex page) const { return segments_.count(page) != 0; }

  Address address_of(Bytes offset) const { return start_[offset / kPageBytes] + offset % kPageBytes; }
  // The place of an address in the range; one inside the first gap if it has none.
  Bytes offset_of(Address address) const {
    const PageIndex page = addresses_.page_at(address, &owner_);
    return page == kNoPage ? touched_[1].first * kPageBytes + kGranularity : page * kPageBytes + address % kPageBytes;
  }
  std::size_t segments() const { return segments_.size(); }
  Bytes removable_bytes() const;  // in segments without a block

  void detach_idle(std::uint32_t at_most, Detached* detached) override;
  void detach_idle_since(Tick tick, std::uint32_t at_most, Detached* detached) override;
  void detach_left_behind(Detached*) override {}
  void detach_blocked(Detached*) override {}
  void unmap_detached(Detached*) const override {}
  std::uint32_t return_detached(const Detached& detached) override;
  void postpone(const Detached& detached) override;
  void return_left_behind() override {}
  // Plain allocations follow the access that torch gives the context.
  Status allow_access_to_mapped() override { return Status::ok; }
  void return_all() override;
  Bytes metadata_bytes() const override;
  void validate(const std::vector<std::uint32_t>& blocks_of) const override;

 private:
  struct Placed {
    Segment segment;
    PageIndex end = 0;  // pages from its key to here
    bool leaving = false;
  };
  using Map = std::map<PageIndex, Placed>;  // by first page

  Status provide(PageIndex first, PageIndex last) override;
  void set_live(PageIndex, PageIndex, bool) override {}  // no page is aliased

  Status take(const SegmentNeed& need, Segment* segment);
  void discard(PageIndex first, PageIndex end) override;
  PageIndex find_gap(Bytes pages) const;
  void place(const Segment& segment, PageIndex first, PageIndex end);
  std::uint32_t take_out(Map::iterator place);
  template <typename Usable>
  void detach(std::uint32_t at_most, Usable usable, Detached* detached);
  bool idle(const Map::value_type& place) const;
  Tick last_use(const Map::value_type& place) const;

  SegmentSupply& supply_;
  AddressTable& addresses_;
  Heap& owner_;
  LazyArray<Address> start_;  // of the page's memory
  Map segments_;
  SegmentNeed need_;  // of the last that was taken, or was not there
  Detached postponed_;
};

}  // namespace poolalloc
