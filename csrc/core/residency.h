// Physical pages mapped behind the pages of a heap's address range, where the device has virtual memory management.
//
// Words: a *frame* is 2 MiB of physical memory. A frame may be mapped at several pages (aliases), but live blocks touch
// it through at most one of them. Of a page (page_table.h) that means
//   resident   its frame is live there and nowhere else
//   ready      its frame is idle
//   blocked    its frame is live at another page; usable again when that ends, or once the work that used this mapping
//              has completed: then the mapping can be replaced
//   empty      no mapping
// A frame on loan is the supply's or another heap's; of its pages here, blocked all of them, the mappings stay, so that
// it can come back without a driver call. When the last block of a page dies the mapping stays. When a block needs an
// empty page, the frame that has been idle longest is mapped there a second time; work of one stream is ordered, so
// that needs no wait. Only when no frame is idle does the page supply give another, or earlier if the option `growth`
// says so.
//
// Aliases are bounded: a frame has at most kMaxAliases and a device max_mappings in all, as far as work has completed
// that could come through those unused for longest. Then they are unmapped, while others are being mapped.
//
//   frames held = resident frames + idle frames + detached frames, on their way out
//   resident pages = resident frames
//   mappings = sum over frames, those on loan too, of their aliases (+ detached pages that are still to be unmapped)
//
// A frame counts at one of its aliases, where it was last live; a detached one at a page that is still to be unmapped.
//
// Guarded by the heap's lock.
#pragma once

#include <unordered_map>
#include <vector>

#include "core/options.h"
#include "core/page_supply.h"
#include "core/page_table.h"

namespace poolalloc {

class Residency final : public PageTable {
 public:
  // Of pages resident at their peak, how much may be held in all before idle ones are mapped again: growth:balanced.
  static constexpr double kBalanced = 1.05;
  static constexpr std::uint32_t kMaxAliases = 8;

  // Pages 0 .. pages - 1 of addresses from `base` on, which are reserved.
  Residency(Driver& driver, DeviceIndex device, PageSupply& supply, Address base, PageIndex split, PageIndex pages,
            const Options& options = {}, PageJournal* journal = nullptr);

  Address base() const { return base_; }
  Address address_of(PageIndex page) const { return base_ + page * kPageBytes; }

  std::uint32_t headroom() const override;
  void detach_idle(std::uint32_t at_most, Detached* detached) override;
  void detach_idle_since(Tick tick, std::uint32_t at_most, Detached* detached) override;
  void detach_left_behind(Detached* detached) override;
  void detach_blocked(Detached* detached) override;
  void unmap_detached(Detached* detached) const override;
  std::uint32_t return_detached(const Detached& detached) override;
  void postpone(const Detached& detached) override;
  std::uint32_t lend(Tick tick, std::uint32_t at_most) override;
  std::uint32_t lend_these(const std::vector<PhysicalHandle>& handles, bool* running) override;
  void take_back(const std::vector<PhysicalHandle>& handles) override;
  bool lent(PhysicalHandle handle) const override { return away(handle) || parting_.contains(handle); }
  void detach_lent(const std::vector<PhysicalHandle>& handles, Detached* detached) override;
  void return_left_behind() override;
  Status allow_access_to_mapped() override;
  bool pieces(PageIndex first, PageIndex last, std::vector<Piece>* pieces) const override;
  void return_all() override;
  void shed() override;
  Bytes metadata_bytes() const override;
  void validate(const std::vector<std::uint32_t>& blocks_of) const override;

  bool away(PhysicalHandle handle) const {
    const auto known = frames_by_handle_.find(handle);
    return known != frames_by_handle_.end() && frames_[known->second].away;
  }

 private:
  using FrameIndex = std::uint32_t;
  static constexpr FrameIndex kNoFrame = 0;  // so that fresh zeroed memory is an empty table
  static constexpr FrameIndex kDetached = ~FrameIndex{0};

  struct Frame {
    PhysicalHandle handle = 0;
    PageIndex page = kNoPage;  // one of its pages; while on loan, where it counts again. kNoPage: the record is unused
    std::uint32_t aliases = 0;
    bool away = false;  // on loan
  };
  // A physical page with mappings that are to be unmapped; once the last has gone, so does the page if it is to.
  struct Parting {
    std::uint32_t pages = 0;
    bool frame_goes = false;
  };
  struct Victim {
    Tick since;  // when its last block died, when last looked
    PageIndex page;
  };

  Status provide(PageIndex first, PageIndex last) override;
  void set_live(PageIndex first, PageIndex last, bool live) override;
  Status clear(PageIndex first, PageIndex last, std::vector<PageIndex>* empty);
  Status take_frames(std::size_t count, std::vector<PageIndex>* victims, std::vector<PhysicalHandle>* handles);
  void undo_map(PageIndex page, bool from_supply);
  // State bits only; counts of pages are the caller's.
  void make_live(PageIndex first, PageIndex last) { set_aliases(first, last, kUsable | kResident, kBlocked); }
  void make_idle(PageIndex first, PageIndex last) { set_aliases(first, last, kUsable, kUsable); }
  void make_live(PageIndex page) { make_live(page, page); }
  void make_idle(PageIndex page) { make_idle(page, page); }
  // visit(alias) for each page of the frame of `page`; it may change the states of pages, not their frames.
  template <typename Visit>
  void for_each_alias(PageIndex page, Visit visit) const {
    rings_.visit_others(page, visit);
    visit(page);
  }
  Status map_frames(const std::vector<PageIndex>& empty);
  void drop_mapping(PageIndex page);
  void limit_aliases(PageIndex page);
  void limit_mappings(std::size_t wanted);
  Tick last_use(PageIndex page) const;
  PageIndex oldest_idle();
  PageIndex idle_since(Tick tick);
  void set_aliases(PageIndex first, PageIndex last, std::uint8_t own, std::uint8_t others);
  void count_at(PageIndex first, PageIndex last);
  bool want_back(PageIndex first, PageIndex last);
  void lend_frame(FrameIndex frame);
  void come_back(FrameIndex frame);
  FrameIndex frame_of(PhysicalHandle handle);
  void drop_frame(FrameIndex frame);
  void add_alias(PageIndex page, FrameIndex index);
  void discard(PageIndex first, PageIndex end) override;
  void remove_alias(PageIndex page);
  void mark_detached(PageIndex page, PhysicalHandle handle, bool frame_goes, bool counted);
  PageIndex another_detached(const Leaving& leaving, const Detached& detached) const;
  void count_moves(PageIndex from, PageIndex to) {
    if (from != kNoPage) page_left(address_of(from));
    if (to != kNoPage) page_came(address_of(to));
  }
  void detach_frame(PageIndex victim, Detached* detached);
  void count_mappings(std::int64_t change) {
    mappings_ += static_cast<std::uint64_t>(change);
    supply_.count_mappings(change);
  }

  Driver& driver_;
  const DeviceIndex device_;
  PageSupply& supply_;
  const Address base_;
  LazyArray<FrameIndex> frame_;
  std::vector<Frame> frames_;  // [0] is a placeholder
  std::vector<FrameIndex> unused_frames_;
  std::unordered_map<PhysicalHandle, FrameIndex> frames_by_handle_;
  enum class Growth { tight, balanced, fast };
  const Growth growth_;
  const std::uint64_t max_mappings_;
  std::vector<Victim> victims_;  // the longest idle pages when last looked, the oldest at the back
  std::unordered_map<PhysicalHandle, Parting> parting_;
  Detached postponed_;    // not waited for
  Detached left_behind_;  // waited for, or never used
};

}  // namespace poolalloc
