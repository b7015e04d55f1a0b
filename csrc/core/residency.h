// Which physical page stands behind which page of a heap's address range, and whether it must.
//
// Words: a *page* is 2 MiB of addresses, a *frame* is 2 MiB of physical memory. A frame may be mapped at several pages
// (aliases), but live blocks touch it through at most one of them. A page is
//   resident   blocks overlap it; its frame is live there and nowhere else
//   ready      no block overlaps it, its frame is idle: a block may come with no driver call
//   blocked    its frame is live at another page; usable again when that ends, or once the work that used this mapping
//              has completed: then the mapping can be replaced
//   empty      no mapping
// When the last block of a page dies the mapping stays. When a block needs an empty page, the frame that has been idle
// longest is mapped there a second time; work of one stream is ordered, so that needs no wait. Only when no frame is
// idle does the page supply give another.
//
//   frames held = resident frames + idle frames + detached frames, on their way out
//   resident pages = resident frames
//   mappings = sum over frames of their aliases (+ detached pages that are still to be unmapped)
//
// The tables are arrays over pages, one byte of state apart from the rest, so that a large block costs a few words to
// judge and to take, not a visit to every page.
//
// Not for blocks or holes: arena.h and slabs.h place those and call acquire / release here. Guarded by the heap's lock.
#pragma once

#include <cstring>
#include <vector>

#include "core/lazy_array.h"
#include "core/page_supply.h"
#include "core/stats.h"
#include "core/types.h"
#include "driver/driver.h"

namespace poolalloc {

using PageIndex = std::uint32_t;
inline constexpr PageIndex kNoPage = ~PageIndex{0};

class Residency {
 public:
  // What a placement over some pages would cost.
  struct Cost {
    bool possible = true;        // false: a page is blocked for now, or two of them map the same frame
    std::uint32_t resident = 0;  // pages that would become resident
    std::uint32_t maps = 0;      // of them, pages that need a frame mapped, in place of another or not
  };

  // The range has two parts, pages 0 .. split - 1 and split .. pages - 1, each used from its start on.
  Residency(Driver& driver, DeviceIndex device, PageSupply& supply, Address base, PageIndex split, PageIndex pages);
  Residency(const Residency&) = delete;
  Residency& operator=(const Residency&) = delete;

  Address base() const { return base_; }
  PageIndex pages() const { return page_count_; }
  Address address_of(PageIndex page) const { return base_ + page * kPageBytes; }

  // Pages first .. last, both included.
  Cost cost(PageIndex first, PageIndex last) const {
    const Tally tally = count(first, last);
    const std::uint32_t pages = last - first + 1;
    Cost cost{true, pages - tally.resident, pages - tally.mapped};
    if ((tally.any & kBlocked) != 0) [[unlikely]]
      count_blocked(first, last, &cost);
    if ((tally.any & kAliased) != 0 && cost.possible) [[unlikely]]
      cost.possible = !frames_repeat(first, last);
    return cost;
  }
  bool ready(PageIndex page) const { return (state_[page] & ~kAliased) == kMapped; }
  bool blocked(PageIndex page) const { return (state_[page] & kBlocked) != 0; }
  // The last blocked page of the range, or kNoPage.
  PageIndex last_blocked(PageIndex first, PageIndex last) const {
    for (PageIndex page = last + 1; page-- > first;)
      if (blocked(page)) return page;
    return kNoPage;
  }

  // Pages of the second part from here on were never used: they are empty.
  PageIndex untouched() const { return touched_[1].end; }

  // One more block overlaps pages first .. last; makes them resident. The cost must be possible. On any status but ok
  // nothing has changed.
  Status acquire(PageIndex first, PageIndex last) {
    if (first == last && blocks_[first] != 0) {
      ++blocks_[first];
      return Status::ok;
    }
    return acquire_pages(first, last);
  }
  // One block less overlaps them.
  void release(PageIndex first, PageIndex last) {
    if (first == last && blocks_[first] > 1) {
      --blocks_[first];
      return;
    }
    release_pages(first, last);
  }

  // Whether acquire may take frames from the supply or only idle ones of its own, and whether it may replace mappings.
  void permit(bool growth, bool unmapping) {
    may_grow_ = growth;
    may_unmap_ = unmapping;
  }

  // The heap's clock: every release is a tick. Whoever sees that the stream has completed all work enqueued before a
  // tick says so; mappings that no block has used since can then be replaced.
  std::uint32_t tick() const { return tick_; }
  void set_completed(std::uint32_t tick) { completed_ = tick; }
  // Mappings ever made; that it grew tells that a placement needed the driver.
  std::uint64_t maps_made() const { return maps_made_; }

  // A slot for whoever places blocks: the first block that starts in the page, or the page's slab.
  template <typename Owner>
  Owner* owner(PageIndex page) const {
    return static_cast<Owner*>(owner_[page]);
  }
  void set_owner(PageIndex page, void* owner) { owner_[page] = owner; }

  // Idle frames leave in three steps, so that nobody waits under the heap's lock: detach_idle makes their pages
  // unusable, the caller waits until earlier work of the stream has completed, return_detached unmaps them and hands
  // the frames to the supply.
  struct Leaving {
    PageIndex page = kNoPage;
    bool last = false;  // of the pages of a frame that goes too
    PhysicalHandle handle = 0;
  };
  using Detached = std::vector<Leaving>;
  // Appends the pages of at most so many frames, and of those that were postponed.
  void detach_idle(std::uint32_t at_most, Detached* detached);
  // Appends mappings that only stand in the way: aliases of resident frames, at blocked pages.
  void detach_blocked(Detached* detached);
  // Returns how many frames went. What the driver refuses to unmap leaves another time.
  std::uint32_t return_detached(const Detached& detached);
  // There was no waiting: they leave with the next that are detached.
  void postpone(const Detached& detached);
  // Unmaps what an acquire mapped in vain, and what was refused before. Not during a capture.
  void return_left_behind();
  // Access for another device to every page with a frame.
  Status allow_access_to_mapped(DeviceIndex peer);
  // Unmaps every page and hands every frame to the supply, whatever lives there.
  void return_all();

  Counter resident() const { return resident_; }
  Counter held() const { return held_; }  // resident and idle
  // Detached ones not counted.
  std::uint32_t idle_frames() const {
    return static_cast<std::uint32_t>(static_cast<Bytes>(held_.current - resident_.current) / kPageBytes) - leaving_;
  }
  std::uint64_t mappings() const { return mappings_; }
  std::uint64_t aliased() const { return aliased_; }
  Bytes metadata_bytes() const;
  void reset_peaks() {
    resident_.reset_peak();
    held_.reset_peak();
  }
  // `blocks_of[page]` is how many blocks overlap a page.
  void validate(const std::vector<std::uint32_t>& blocks_of) const;

 private:
  using FrameIndex = std::uint32_t;
  static constexpr FrameIndex kNoFrame = 0;  // so that fresh zeroed memory is an empty table
  static constexpr FrameIndex kDetached = ~FrameIndex{0};

  // Bits of a page's state; none set: empty.
  static constexpr std::uint8_t kResident = 1;
  static constexpr std::uint8_t kMapped = 2;
  static constexpr std::uint8_t kBlocked = 4;
  static constexpr std::uint8_t kAliased = 8;  // its frame is mapped elsewhere too

  struct Frame {
    PhysicalHandle handle = 0;
    PageIndex first_alias = kNoPage;  // kNoPage: the record is unused
  };
  struct Tally {
    std::uint32_t resident = 0, mapped = 0;
    std::uint8_t any = 0;  // bits set in any page
  };
  struct Span {
    PageIndex first, end;
  };
  struct Victim {
    std::uint32_t idle_since;
    PageIndex page;
  };

  Tally count(PageIndex first, PageIndex last) const;
  void count_blocked(PageIndex first, PageIndex last, Cost* cost) const;
  bool replaceable(PageIndex page) const {
    return may_unmap_ && frame_[page] != kDetached && static_cast<std::int32_t>(completed_ - idle_since_[page]) >= 0;
  }
  Status clear_blocked(PageIndex first, PageIndex last);
  bool frames_repeat(PageIndex first, PageIndex last) const;
  void touch(PageIndex last);
  Status acquire_pages(PageIndex first, PageIndex last);
  void release_pages(PageIndex first, PageIndex last);
  Status map_empty(PageIndex first, PageIndex last);
  Status take_frames(std::size_t count, std::vector<PageIndex>* victims, std::vector<PhysicalHandle>* handles);
  void undo_map(PageIndex page, bool from_supply);
  void make_live(PageIndex page);
  void make_idle(PageIndex page);
  PageIndex oldest_idle();
  void set_aliases(PageIndex page, std::uint8_t own, std::uint8_t others);
  FrameIndex new_frame(PhysicalHandle handle);
  void drop_frame(FrameIndex frame);
  void add_alias(PageIndex page, FrameIndex frame);
  void remove_alias(PageIndex page);
  void mark_detached(PageIndex page);

  Driver& driver_;
  const DeviceIndex device_;
  PageSupply& supply_;
  const Address base_;
  const PageIndex page_count_;
  LazyArray<std::uint8_t> state_;
  LazyArray<std::uint16_t> blocks_;      // blocks that overlap the page
  LazyArray<std::uint32_t> idle_since_;  // tick of the heap's clock
  LazyArray<FrameIndex> frame_;
  LazyArray<PageIndex> next_alias_;  // the next page that maps the same frame, or kNoPage
  LazyArray<void*> owner_;
  Span touched_[2];              // of each part, the pages that may have been used
  std::uint32_t tick_ = 0;       // counts releases
  std::uint32_t completed_ = 0;  // the stream's work before this tick is done
  std::vector<Frame> frames_;    // [0] is a placeholder
  std::vector<FrameIndex> unused_frames_;
  std::vector<Victim> victims_;  // the longest idle pages when last looked, the oldest at the back
  Counter resident_, held_;
  Detached postponed_;         // not waited for
  Detached left_behind_;       // waited for, or never used
  std::uint32_t leaving_ = 0;  // frames that are detached; held, but of no use
  bool may_grow_ = true;
  bool may_unmap_ = false;
  std::uint64_t maps_made_ = 0;
  std::uint64_t mappings_ = 0;
  std::uint64_t aliased_ = 0;
};

}  // namespace poolalloc
