// Which pages of a heap's range must be resident, whatever memory stands behind them.
//
// A *page* is 2 MiB of the heap's addresses. It is
//   resident   blocks overlap it
//   ready      no block overlaps it, and it has memory: a block may come with no driver call
//   blocked    it cannot be had now: its memory is in use elsewhere, or on its way out
//   empty      it has no memory
// When the last block of a page dies its memory stays. Where memory comes from when a page has none, and how it leaves,
// is for those who derive from this: residency.h maps physical pages, segments.h takes whole allocations.
//
//   held = resident + idle, and what is on its way out
//
// The tables are arrays over pages, one byte of state apart from the rest, so that a large block costs a few words to
// judge and to take, not a visit to every page; but for pages that share memory, whose states change together.
//
// Not for blocks or holes: arena.h and slabs.h place those and call acquire / release here. Guarded by the heap's lock.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/backing/alias_rings.h"
#include "core/backing/page_journal.h"
#include "core/base/lazy_array.h"
#include "core/base/stats.h"
#include "core/base/types.h"
#include "driver/driver.h"

namespace poolalloc {

class PageTable {
 public:
  // What a placement over some pages would cost.
  struct Cost {
    bool possible = true;        // false: a page cannot be had now
    std::uint32_t resident = 0;  // pages that would become resident
    std::uint32_t maps = 0;      // of them, pages that need a driver call
    std::uint32_t back = 0;      // of them, pages whose own memory is away and asked back
    bool aliased = false;        // some share their memory with others

    bool driver() const { return maps + back != 0; }
  };

  // The range has two parts, pages 0 .. split - 1 and split .. pages - 1, each used from its start on. Where memory
  // comes to count and ceases to is noted in the journal, if there is one.
  PageTable(PageIndex split, PageIndex pages, PageJournal* journal);
  virtual ~PageTable() = default;
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  PageIndex pages() const { return page_count_; }

  // Pages first .. last, both included.
  Cost cost(PageIndex first, PageIndex last) const {
    const std::uint32_t pages = last - first + 1;
    const Tally tally = count(first, last);
    Cost cost;
    cost.resident = pages - count(first, last, kResident);
    if (asked_back_ != 0) cost.back = count(first, last, asked_back_);
    cost.maps = pages - tally.usable - cost.back;
    cost.aliased = (tally.any & kAliased) != 0;
    if ((tally.any & kBlocked) != 0 || (cost.aliased && rings_.any_repeats(first, last))) judge(first, last, &cost);
    return cost;
  }
  // How many blocks overlap a page.
  std::uint32_t blocks(PageIndex page) const { return resident(page) ? sharers_[page] + 1u : 0; }
  bool resident(PageIndex page) const { return (state_[page] & kResident) != 0; }
  bool ready(PageIndex page) const { return (state_[page] & (kUsable | kResident)) == kUsable; }
  // Resident or ready: one more block needs no driver call.
  bool usable(PageIndex page) const { return (state_[page] & kUsable) != 0; }
  bool blocked(PageIndex page) const { return (state_[page] & kBlocked) != 0; }
  // Whether memory is away that may be asked back.
  bool asks_back() const { return asked_back_ != 0 && away_ != 0; }
  // Ready, or its memory is away and may be asked back.
  bool at_hand(PageIndex page) const { return ready(page) || asked_back(page); }
  // Whether a block may come to pages first .. last with no driver call: each is usable, and none of their memory is at
  // hand for two of them.
  bool usable(PageIndex first, PageIndex last) const {
    const Tally tally = count(first, last);
    if (tally.usable != last - first + 1) return false;
    return (tally.any & kAliased) == 0 || !rings_.any_repeats(first, last);
  }
  // The lowest page from `first` on, before `end`, that is ready (or is not); `end` if there is none.
  PageIndex next_ready(PageIndex first, PageIndex end) const;
  PageIndex next_not_ready(PageIndex first, PageIndex end) const;
  // The lowest page from which on none of first .. last has memory that another of them has as well.
  PageIndex after_repeats(PageIndex first, PageIndex last) const;
  // The lowest page of first .. last whose memory a page before it has as well; kNoPage if there is none.
  PageIndex first_repeat(PageIndex first, PageIndex last) const;

  // What placing a block at pages that are not all ready would take: microseconds of the driver, and what it is worth
  // not to grow.
  struct Price {
    bool possible = false;
    double cost = 0;
  };
  // Whether new memory may be made, as far as the source allows.
  virtual void may_grow(bool) {}
  // Whether blocks come one after the other with no free between them, so that more will follow.
  virtual void expect_more(bool) {}
  // A plan uses all pages of the arena before `end`: they may be made ahead of their use, and none beside them.
  virtual void plan_until(PageIndex) {}
  // A placement found no memory: so many pages are missing.
  void lack(std::uint32_t pages) { missing_ = pages; }
  // Looks at what there is, before prices are asked for one placement.
  virtual void take_stock() {}
  virtual Price price(PageIndex, PageIndex) const { return {}; }
  // The longest row of pieces of memory inside [first, end) in which nothing is live; `*start` is its first page.
  virtual std::uint32_t longest_idle_row(PageIndex, PageIndex, PageIndex*) const { return 0; }
  // Pages of the widest piece of memory that is live in part: its idle tail may serve a run that has so much room
  // before it.
  virtual std::uint32_t widest_partial() const { return 0; }

  // Pages of the second part from here on were never used: they are empty.
  PageIndex untouched() const { return touched_[1].end; }

  // One more block overlaps pages first .. last; makes them resident. The cost must be possible. On any status but ok
  // nothing has changed.
  Status acquire(PageIndex first, PageIndex last) {
    if (first == last) {
      if (resident(first)) {
        ++sharers_[first];
        return Status::ok;
      }
      if (state_[first] == kIdleAlone) {
        state_[first] = kLiveAlone;
        resident_.add(kPageBytes);
        return Status::ok;
      }
    }
    return acquire(first, last, cost(first, last));
  }
  // The same at what it costs, as cost() has just said.
  Status acquire(PageIndex first, PageIndex last, const Cost& cost);
  // One block less overlaps them.
  void release(PageIndex first, PageIndex last) {
    if (first == last) {
      if (sharers_[first] != 0) {
        --sharers_[first];
        return;
      }
      if (state_[first] == kLiveAlone) {
        state_[first] = kIdleAlone;
        idle_since_[first] = ++tick_;
        resident_.subtract(kPageBytes);
        return;
      }
    }
    release_pages(first, last);
  }

  // Where acquire may get memory that is not idle here; in any case it takes what is.
  enum class Source {
    none,   // nowhere
    back,   // as spare; and memory that is away counts as at hand where it is mapped already. A placement that takes it
            // at its word finds it out_of_memory, and what is to be asked back in wanted()
    spare,  // what lies spare in the supply, and new memory as far as the option `growth` allows
    any     // new memory, too
  };
  // And whether it may unmap.
  void permit(Source source, bool unmapping) {
    source_ = source;
    asked_back_ = source == Source::back ? kAway : 0;
    may_unmap_ = unmapping;
    if (source != Source::any) {
      wanted_.clear();
      missing_ = 0;
    }
  }
  // Who chose the pages that are acquired next.
  enum class Whose {
    program,        // nobody: pages that cost little were looked for
    doubtful_plan,  // a plan that the program may not follow: no more may be held than the plan's margin allows
    plan  // memory that is idle elsewhere will be needed there: the pages get other memory, as far as they may
  };
  void place_for(Whose whose) { whose_ = whose; }
  // What the last acquire that ran out of memory, and could not get new one, lacked: so many pages, or these.
  std::uint32_t missing() const { return missing_; }
  const std::vector<PhysicalHandle>& wanted() const { return wanted_; }

  // The heap's clock: every release is a tick. Whoever sees that the stream has completed all work enqueued before a
  // tick says so; what no block has used since can then be replaced. Nobody may have looked for months, so the clock
  // must never come round.
  using Tick = std::uint64_t;
  Tick tick() const { return tick_; }
  Tick completed() const { return completed_; }
  void set_completed(Tick tick) { completed_ = std::max(completed_, tick); }
  // Pages ever given memory; that it grew tells that a placement needed the driver.
  std::uint64_t maps_made() const { return maps_made_; }

  // A slot for whoever places blocks: the first block that starts in the page, or the page's slab.
  template <typename Owner>
  Owner* owner(PageIndex page) const {
    return static_cast<Owner*>(owner_[page]);
  }
  void set_owner(PageIndex page, void* owner) { owner_[page] = owner; }

  // Idle memory leaves in steps, so that nobody waits for the device or the driver under the heap's lock: detach_idle
  // makes its pages unusable, the caller waits until earlier work of the stream has completed, unmap_detached asks the
  // driver, return_detached hands the memory to the supply.
  struct Leaving {
    PageIndex page = kNoPage;  // the first
    PhysicalHandle handle = 0;
    std::uint32_t pages = 1;
    bool unmapped = false;
  };
  using Detached = std::vector<Leaving>;
  // Appends the memory of at most so many pages, or a little more where it goes in larger pieces, and what was
  // postponed.
  virtual void detach_idle(std::uint32_t at_most, Detached* detached) = 0;
  // The same of memory that nothing has used since `tick`. There is nothing to wait for if that is a completed one.
  virtual void detach_idle_since(Tick tick, std::uint32_t at_most, Detached* detached) = 0;
  // Appends what the driver refused to take before: that was waited for.
  virtual void detach_left_behind(Detached* detached) = 0;
  // Appends what only stands in the way of blocks, at blocked pages.
  virtual void detach_blocked(Detached* detached) = 0;
  // Driver calls only: the one step without the heap's lock.
  virtual void unmap_detached(Detached* detached) const = 0;
  // Returns how many pages of memory went. What the driver refused to take leaves another time.
  virtual std::uint32_t return_detached(const Detached& detached) = 0;
  // There was no waiting: they leave with the next that are detached.
  virtual void postpone(const Detached& detached) = 0;

  // Idle memory also leaves on loan, with no driver call: it is the supply's from then on, its mappings stay, and their
  // pages are blocked until it comes back or they are unmapped. Only memory that nothing has used since the completed
  // tick goes. Returns the pages of memory.
  virtual std::uint32_t lend(Tick, std::uint32_t) { return 0; }  // idle since this tick; at most so many
  // Of these, what is here; `running` tells whether some is idle that work may still use.
  virtual std::uint32_t lend_these(const std::vector<PhysicalHandle>&, bool*) { return 0; }
  // What of these is spare comes back to its pages.
  virtual void take_back(const std::vector<PhysicalHandle>&) {}
  // Whether a page here is mapped to memory that is the supply's.
  virtual bool lent(PhysicalHandle) const { return false; }
  // Appends all such pages of these: their memory is to leave the supply.
  virtual void detach_lent(const std::vector<PhysicalHandle>&, Detached*) {}
  // Lets go of what an acquire got in vain, and of what was refused before. Not during a capture.
  virtual void return_left_behind() = 0;
  // Access to every page with memory once more, since the device has another peer now.
  virtual Status allow_access_to_mapped() = 0;
  // One physical handle, mapped whole from a page on.
  struct Piece {
    PhysicalHandle handle = 0;
    PageIndex start = 0;
    std::uint32_t pages = 0;
  };
  // The physical memory under resident pages, in the pieces that are mapped. False if it has no handles.
  virtual bool pieces(PageIndex, PageIndex, std::vector<Piece>*) const { return false; }
  // Hands all memory to the supply, whatever lives there.
  virtual void return_all() = 0;

  const Counter& resident() const { return resident_; }
  const Counter& held() const { return held_; }  // resident and idle

  // visit(first, last, idle) for each run of pages at which memory counts (observer.h), by address.
  template <typename Visit>
  void visit_counted(Visit visit) const {
    for (const Range& part : touched_)
      for (PageIndex first = part.first, last; first < part.end; first = last + 1) {
        last = first;
        if (!counts(first)) continue;
        const int resident = state_[first] & kResident;
        while (last + 1 < part.end && counts(last + 1) && (state_[last + 1] & kResident) == resident) ++last;
        visit(first, last, resident == 0);
      }
  }

  // Pages of memory under no block; detached ones not counted.
  std::uint32_t idle_frames() const {
    return static_cast<std::uint32_t>(static_cast<Bytes>(held_.current - resident_.current) / kPageBytes) - leaving_;
  }
  std::uint64_t mappings() const { return mappings_; }
  std::uint64_t aliased() const { return aliased_; }
  virtual Bytes metadata_bytes() const;
  // Gives back the memory of tables for pages that have no memory now, as far as whole pages of the host's hold nothing
  // else. Worth while after so many more pages have been given memory.
  static constexpr std::uint64_t kShedAfter = 1024;
  bool shed_due() const { return maps_made_ - maps_at_shed_ >= kShedAfter; }
  void shed_tables();
  // The same, and of everything else that is no longer needed.
  virtual void shed() { shed_tables(); }
  void reset_peaks() {
    resident_.reset_peak();
    held_.reset_peak();
  }
  // `blocks_of[page]` is how many blocks overlap a page.
  virtual void validate(const std::vector<std::uint32_t>& blocks_of) const;

 protected:
  // Bits of a page's state; none set: empty. A page that has memory is usable or blocked.
  static constexpr std::uint8_t kResident = 1;
  static constexpr std::uint8_t kUsable = 2;  // resident or ready
  static constexpr std::uint8_t kBlocked = 4;
  static constexpr std::uint8_t kAliased = 8;  // its memory is that of another page too: its ring
  static constexpr std::uint8_t kCounted =
      16;                                    // memory counts here: once for each page that is held, on its way out too
  static constexpr std::uint8_t kAway = 32;  // its memory is on loan; blocked as well
  static constexpr std::uint8_t kIdleAlone = kUsable | kCounted;  // and no other page has its memory
  static constexpr std::uint8_t kLiveAlone = kIdleAlone | kResident;

  static constexpr std::uint64_t kEach = 0x0101010101010101;  // one in each byte of a word

  struct Range {
    PageIndex first, end;
  };

  bool asked_back(PageIndex page) const { return (state_[page] & asked_back_) != 0; }
  // Whether a blocked or aliased page can be had at the price of driver calls: it is not on its way out, and nothing
  // uses its mapping any more, as all work enqueued before its last block died has completed.
  virtual bool replaceable(PageIndex page) const {
    return may_unmap_ && (state_[page] & (kAliased | kAway)) != 0 && idle_since_[page] <= completed_;
  }
  // Memory for every page of the range that has none, or whose own is replaced. ok: all are live, by their states. On
  // any other status no page has less or more than before, except that blocked pages may be empty now.
  virtual Status provide(PageIndex first, PageIndex last) = 0;
  bool counts(PageIndex page) const { return (state_[page] & kCounted) != 0; }
  // State of a range with aliased pages: all of it becomes resident, or idle.
  virtual void set_live(PageIndex first, PageIndex last, bool live) = 0;
  // Pages first .. last are given memory, and their entries may be other than zero from now on.
  void touch(PageIndex first, PageIndex last);
  // Entries of these pages are zero, but for when they were used last, which no longer matters.
  virtual void discard(PageIndex first, PageIndex end);
  // Pages whose entries may have memory.
  Bytes tabled_pages() const { return Bytes{used_parts_} * kPartPages; }

  bool journal_kept() const { return journal_ != nullptr && journal_->kept(); }
  // Memory for a page came to count at this address, or ceased to.
  void page_came(Address address) {
    if (journal_ != nullptr) journal_->came(address);
  }
  void page_left(Address address) {
    if (journal_ != nullptr) journal_->left(address);
  }
  // At the end of an operation that moved any.
  void tell_journal() {
    if (journal_ != nullptr) journal_->tell();
  }

  const PageIndex page_count_;
  PageJournal* const journal_;
  LazyArray<std::uint8_t> state_;
  AliasRings rings_;                  // of pages with memory
  LazyArray<std::uint16_t> sharers_;  // blocks that overlap a resident page, but for one
  LazyArray<Tick> idle_since_;        // when its last block died
  Range touched_[2];                  // of each part, the pages that may have been used
  Tick tick_ = 0;                     // counts releases
  Tick completed_ = 0;                // the stream's work before this tick is done
  Counter resident_, held_;
  std::uint32_t leaving_ = 0;  // pages of memory that are detached; held, but of no use
  Source source_ = Source::any;
  std::uint8_t asked_back_ = 0;  // kAway where that counts as at hand
  std::uint32_t away_ = 0;       // pieces of memory on loan
  bool may_unmap_ = false;
  Whose whose_ = Whose::program;
  std::uint32_t missing_ = 0;
  std::vector<PhysicalHandle> wanted_;
  std::uint64_t maps_made_ = 0;
  std::uint64_t mappings_ = 0;
  std::uint64_t aliased_ = 0;
  bool has_aliases_ = false;  // some page is marked as aliased, or was

 private:
  struct Tally {
    std::uint32_t usable = 0;
    std::uint8_t any = 0;  // bits set in any page
  };

  // Always inline: its result handed over in memory would cost more than the counting.
  [[gnu::always_inline]] Tally count(PageIndex first, PageIndex last) const {
    const std::uint8_t* state = state_.data() + first;
    std::size_t left = last - first + 1;
    Tally tally;
    std::uint64_t any = 0, eight;
    const auto add = [&] {
      // One bit a byte: the product's top byte is their sum.
      tally.usable += static_cast<std::uint32_t>(((eight / kUsable & kEach) * kEach) >> 56);
      any |= eight;
    };
    for (; left > 8; left -= 8, state += 8) {
      std::memcpy(&eight, state, 8);
      add();
    }
    std::memcpy(&eight, state, 8);  // past the range, but not past the table
    eight &= ~std::uint64_t{0} >> (64 - 8 * left);
    add();
    any |= any >> 32;
    any |= any >> 16;
    any |= any >> 8;
    tally.any = static_cast<std::uint8_t>(any);
    return tally;
  }
  std::uint32_t count(PageIndex first, PageIndex last, std::uint8_t bit) const;
  void judge(PageIndex first, PageIndex last, Cost* cost) const;
  bool part_empty(PageIndex part) const;
  void release_pages(PageIndex first, PageIndex last);

  // The tables have memory by parts: so many pages that the widest entries fill one page of the host's.
  static constexpr PageIndex kPartPages = 512;
  LazyArray<void*> owner_;
  std::vector<bool> part_used_;
  std::uint32_t used_parts_ = 0;
  std::uint64_t maps_at_shed_ = 0;
};

}  // namespace poolalloc
