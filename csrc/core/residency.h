// Which physical page stands behind which page of a heap's address range, and whether it must.
//
// Words: a *page* is 2 MiB of addresses, a *frame* is 2 MiB of physical memory. A frame may be mapped at several pages
// (aliases), but live blocks touch it through at most one of them. A page is
//   resident   blocks overlap it; its frame is live there and nowhere else
//   ready      no block overlaps it, its frame is idle: a block may come with no driver call
//   blocked    its frame is live at another page: unusable until that ends or the mapping goes
//   empty      no mapping
// When the last block of a page dies the mapping stays. When a block needs an empty page, the frame that has been idle
// longest is mapped there a second time; work of one stream is ordered, so that needs no wait. Only when no frame is
// idle does the page supply give another.
//
//   frames = resident frames + idle frames         one resident page per resident frame
//   mappings = sum over frames of their aliases
//
// Not for blocks or holes: arena.h and slabs.h place those and call acquire / release here. Guarded by the heap's lock.
#pragma once

#include <memory>
#include <utility>
#include <vector>

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
    bool possible = true;        // false: a page is blocked
    std::uint32_t resident = 0;  // pages that would become resident
    std::uint32_t maps = 0;      // of them, pages that need a frame mapped
  };

  Residency(Driver& driver, DeviceIndex device, PageSupply& supply, Address base, PageIndex pages);
  Residency(const Residency&) = delete;
  Residency& operator=(const Residency&) = delete;

  Address base() const { return base_; }
  PageIndex pages() const { return page_count_; }
  Address address_of(PageIndex page) const { return base_ + page * kPageBytes; }

  // Pages first .. last, both included.
  Cost cost(PageIndex first, PageIndex last) const {
    Cost cost;
    for (PageIndex page = first; page <= last; ++page) {
      const Page& entry = table_[page];
      if (entry.blocks != 0) continue;
      if (entry.frame == kNoFrame) {
        ++cost.maps;
      } else if (entry.frame == kDetached || frames_[entry.frame].live_page != kNoPage ||
                 shares_frame(page, first)) {
        cost.possible = false;
        return cost;
      }
      ++cost.resident;
    }
    return cost;
  }
  bool ready(PageIndex page) const {
    const Page& entry = table_[page];
    return entry.frame != kNoFrame && entry.frame != kDetached && frames_[entry.frame].live_page == kNoPage;
  }
  bool blocked(PageIndex page) const { return !cost(page, page).possible; }

  // One more block overlaps pages first .. last; makes them resident. The cost must be possible. On any status but ok
  // nothing has changed.
  Status acquire(PageIndex first, PageIndex last) {
    if (first == last && table_[first].blocks != 0) [[likely]] {
      ++table_[first].blocks;
      return Status::ok;
    }
    return acquire_pages(first, last);
  }
  // One block less overlaps them.
  void release(PageIndex first, PageIndex last) {
    for (PageIndex page = first; page <= last; ++page)
      if (--table_[page].blocks == 0) make_idle(page);
  }

  // Whether acquire may take frames from the supply, or only idle ones of its own.
  void allow_growth(bool allowed) { may_grow_ = allowed; }

  // A slot for whoever places blocks: the first block that starts in the page, or the page's slab.
  template <typename Owner>
  Owner* owner(PageIndex page) const {
    return static_cast<Owner*>(table_[page].owner);
  }
  void set_owner(PageIndex page, void* owner) { table_[page].owner = owner; }

  // Idle frames leave in three steps, so that nobody waits under the heap's lock: detach_idle makes their pages
  // unusable, the caller waits until earlier work of the stream has completed, return_detached unmaps them and hands
  // the frames to the supply.
  struct Detached {
    std::vector<PhysicalHandle> frames;
    std::vector<PageIndex> pages;
  };
  Detached detach_idle(std::uint32_t at_most);
  void return_detached(const Detached& detached);
  // The same for mappings that only stand in the way: aliases of resident frames at blocked pages.
  Detached detach_blocked();
  // Unmaps every page and hands every frame to the supply, whatever lives there.
  void return_all();

  Counter resident() const { return resident_; }
  Counter held() const { return held_; }  // resident and idle
  std::uint32_t idle_frames() const { return idle_count_; }
  std::uint64_t mappings() const { return mappings_; }
  std::uint64_t aliased() const { return aliased_; }
  Bytes metadata_bytes() const;
  void reset_peaks() {
    resident_.reset_peak();
    held_.reset_peak();
  }
  // `blocks_of(page)` says how many blocks overlap a page.
  void validate(const std::vector<std::uint32_t>& blocks_of) const;

 private:
  using FrameIndex = std::uint32_t;
  static constexpr FrameIndex kNoFrame = 0;  // so that fresh zeroed memory is an empty table
  static constexpr FrameIndex kDetached = ~FrameIndex{0};

  struct Page {
    FrameIndex frame;
    PageIndex next_alias;  // the next page that maps the same frame, or kNoPage
    std::uint32_t blocks;
    void* owner;
  };
  struct Frame {
    PhysicalHandle handle = 0;
    PageIndex first_alias = kNoPage;
    PageIndex live_page = kNoPage;                  // kNoPage: idle
    FrameIndex newer = kNoFrame, older = kNoFrame;  // among idle frames, by the time they became idle
  };

  // Whether a page from `first` up to this one, this one not included, maps the same frame: both cannot be resident.
  bool shares_frame(PageIndex page, PageIndex first) const {
    PageIndex alias = frames_[table_[page].frame].first_alias;
    if (alias == page && table_[page].next_alias == kNoPage) return false;
    for (; alias != kNoPage; alias = table_[alias].next_alias)
      if (alias >= first && alias < page) return true;
    return false;
  }
  Status acquire_pages(PageIndex first, PageIndex last);
  Status back(PageIndex page, FrameIndex* new_frame);
  void make_live(PageIndex page, FrameIndex frame);
  void make_idle(PageIndex page);
  void unlink_idle(FrameIndex frame);
  FrameIndex new_frame(PhysicalHandle handle);
  void drop_frame(FrameIndex frame);
  void remove_alias(PageIndex page);

  Driver& driver_;
  const DeviceIndex device_;
  PageSupply& supply_;
  const Address base_;
  const PageIndex page_count_;
  struct Unmapper {
    std::size_t bytes;
    void operator()(Page* table) const;
  };
  std::unique_ptr<Page[], Unmapper> table_;
  PageIndex touched_ = 0;      // pages below it may have been used
  std::vector<Frame> frames_;  // [0] is a placeholder
  std::vector<FrameIndex> unused_frames_;
  FrameIndex newest_ = kNoFrame, oldest_ = kNoFrame;
  std::uint32_t idle_count_ = 0;
  Counter resident_, held_;
  bool may_grow_ = true;
  std::uint64_t mappings_ = 0;
  std::uint64_t aliased_ = 0;
};

}  // namespace poolalloc
