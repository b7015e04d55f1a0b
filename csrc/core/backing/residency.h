// Physical memory mapped behind the pages of a heap's address range, where the device has virtual memory management.
//
// Words: a *span* is one physical handle of any number of 2 MiB pages. The driver maps it whole, at one address or at
// several (*aliases*), and charges for each mapping. Live blocks may touch different pages of a span through different
// aliases, but each of its pages through at most one. Of a page of the range (page_table.h) that means
//   resident   the page of the span that is mapped here is live here and nowhere else
//   ready      it is idle
//   blocked    it is live through another alias; usable again when that ends, or once the work that used this mapping
//              has completed: then the mapping can be replaced
//   empty      no mapping
// So a span of 64 pages in which one is live is not lost: its other 63 serve blocks elsewhere, through another alias.
//
// When the last block of a page dies the mapping stays. When a block needs empty pages, they are filled with idle spans
// mapped there once more, or with new ones, whichever is cheaper (span_fill.h); work of one stream is ordered, so that
// needs no wait. How large new spans are, and how far the heap may grow while others are idle, is the option `growth`.
//
// A span on loan is the supply's or another heap's. Its mappings stay here, so that it can come back without a driver
// call; their pages are blocked.
//
// Aliases are bounded: a span has at most kMaxAliases and a device max_mappings in all, as far as work has completed
// that could come through those unused for longest. Then they are unmapped, while others are being mapped.
//
//   pages held = resident + idle + detached, on their way out = sum over spans that are here of their pages
//   resident pages = pages of spans that are live
//   mappings = sum over spans, those on loan too, of their aliases (+ detached mappings that are still to be unmapped)
//
// A page of a span counts at one of its aliases, where it was last live; a detached one where it is still to be
// unmapped.
//
// Guarded by the heap's lock.
#pragma once

#include <unordered_map>
#include <utility>
#include <vector>

#include "core/backing/page_supply.h"
#include "core/backing/page_table.h"
#include "core/backing/span_fill.h"
#include "core/options/options.h"
#include "core/plans/plan.h"

namespace poolalloc {

class Residency final : public PageTable {
 public:
  static constexpr std::uint32_t kMaxAliases = 8;

  // Pages 0 .. pages - 1 of addresses from `base` on, which are reserved.
  Residency(Driver& driver, DeviceIndex device, PageSupply& supply, Address base, PageIndex split, PageIndex pages,
            const Options& options = {}, PageJournal* journal = nullptr);

  // Of how many pages spans are that are made before anybody needs them.
  static std::uint32_t prepared_pages(const Options& options);

  Address base() const { return base_; }
  Address address_of(PageIndex page) const { return base_ + page * kPageBytes; }

  void may_grow(bool grow) override { making_ = first_making_ = grow ? Making::grows : Making::none; }
  void expect_more(bool more) override { more_expected_ = more; }
  void plan_until(PageIndex end) override { planned_end_ = end; }
  void take_stock() override;
  Price price(PageIndex first, PageIndex last) const override;
  std::uint32_t longest_idle_row(PageIndex first, PageIndex end, PageIndex* start) const override;
  std::uint32_t widest_partial() const override { return widest_partial_; }
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

  // Sleep: every mapping goes, every handle with it, and the tables stay as they are, so that waking makes the same
  // mappings of new handles. Meanwhile blocks may be freed, but none is placed and nothing else of this is called;
  // held(), resident() and mappings() stay what they will be. The driver's calls are the caller's, without the heap's
  // lock. Not with a span on loan or on its way out.
  struct Alias {
    Address address = 0;
    std::uint32_t pages = 0;
    std::uint32_t span = 0;  // aliases of one span are neighbours in the list
    PhysicalHandle handle = 0;
  };
  std::vector<Alias> aliases() const;
  // visit(address, bytes) for each run of pages that are live.
  template <typename Visit>
  void visit_live(Visit visit) const {
    for (const Range& part : touched_)
      for (PageIndex first = part.first, last; first < part.end; first = last + 1) {
        last = first;
        if (!resident(first)) continue;
        while (last + 1 < part.end && resident(last + 1)) ++last;
        visit(address_of(first), (last - first + 1) * kPageBytes);
      }
  }
  bool can_sleep() const { return parting_.empty() && away_ == 0; }
  void fall_asleep();
  // Spans on which nothing lives any more need not come back.
  void forget_idle();
  // Every alias is mapped again, of the handle that it has now.
  void wake_up(const std::vector<Alias>& aliases);
  Bytes metadata_bytes() const override;
  void validate(const std::vector<std::uint32_t>& blocks_of) const override;

  bool away(PhysicalHandle handle) const {
    const auto known = spans_by_handle_.find(handle);
    return known != spans_by_handle_.end() && spans_[known->second].away;
  }

 private:
  using SpanIndex = std::uint32_t;
  using MappingIndex = std::uint32_t;
  static constexpr MappingIndex kNoMapping = 0;  // so that fresh zeroed memory is an empty table
  static constexpr MappingIndex kDetached = ~MappingIndex{0};

  struct Span {
    PhysicalHandle handle = 0;  // 0: the record is unused
    std::uint32_t pages = 0;
    std::uint32_t aliases = 0;
    MappingIndex mapping = kNoMapping;  // the newest; the others by Mapping::next
    bool away = false;                  // on loan
    mutable std::uint32_t taken = 0;    // by the placement of this number
  };
  struct Mapping {
    SpanIndex span = 0;
    PageIndex start = 0;
    MappingIndex next = kNoMapping;     // of the same span, or of unused records
    mutable std::uint32_t dropped = 0;  // by the placement of this number
  };
  // A span with mappings that are to be unmapped; once the last has gone, so does the span if it is to.
  struct Parting {
    std::uint32_t mappings = 0;
    std::uint32_t pages = 0;
    bool span_goes = false;
  };
  // What a placement at some pages takes.
  struct Plan {
    struct Part {
      PageIndex first;  // of the run of empty pages
      Fill fill;
    };
    bool possible = true;
    double microseconds = 0;
    double cost = 0;
    std::vector<MappingIndex> drops;  // in the way
    std::vector<Part> parts;
  };
  // Memory for one piece of a plan.
  struct Taken {
    PhysicalHandle handle = 0;
    std::uint32_t pages = 0;
    SpanIndex span = 0;  // 0: it comes from the supply
    PageIndex start = 0;
  };

  Status provide(PageIndex first, PageIndex last) override;
  void set_live(PageIndex first, PageIndex last, bool live) override;
  bool replaceable(PageIndex page) const override;

  Plan plan(PageIndex first, PageIndex last) const;
  bool droppable(MappingIndex mapping) const;
  EmptyRun run_at(PageIndex first, PageIndex last, bool outer_first, bool outer_last) const;
  bool empty(PageIndex page) const {
    return state_[page] == 0 || (mapping_[page] != kDetached && mappings_list_[mapping_[page]].dropped == number_);
  }
  // Whether new memory comes before idle memory, as long as there is room.
  bool takes_new() const { return fast_ || whose_ == Whose::plan; }
  GrowthRoom growth_room(std::uint32_t resident) const;
  Status carry_out(const Plan& plan, PageIndex first, PageIndex last, bool* had_memory);
  Status take_memory(const Plan& plan, std::vector<Taken>* taken);
  Status map_all(std::vector<Taken>* taken);
  void undo_map(const Taken& taken);

  // State bits only; counts of pages are the caller's.
  void make_live(PageIndex first, PageIndex last) { set_aliases(first, last, kUsable | kResident, kBlocked); }
  void make_idle(PageIndex first, PageIndex last) { set_aliases(first, last, kUsable, kUsable); }
  void set_aliases(PageIndex first, PageIndex last, std::uint8_t own, std::uint8_t others);
  void count_at(PageIndex first, PageIndex last);
  void make_live_where_idle(PageIndex first, PageIndex last);
  std::uint32_t count_usable(PageIndex first, PageIndex last) const;

  SpanIndex add_span(PhysicalHandle handle, std::uint32_t pages);
  void drop_span(SpanIndex index);
  void add_mapping(PageIndex start, SpanIndex index);
  void remove_mapping(MappingIndex index);
  void drop_mapping(MappingIndex index);
  void limit_aliases(SpanIndex index);
  void limit_mappings(std::size_t wanted, PageIndex first, PageIndex last);
  std::pair<std::uint32_t, std::uint32_t> idle_ends(const Span& span) const;
  bool wholly_idle(const Span& span) const { return !span.away && idle_ends(span).first == span.pages; }
  Tick last_use(const Mapping& mapping) const;
  Tick last_use(const Span& span) const;
  std::vector<SpanIndex> idle_spans(Tick since) const;
  // visit(mapping) for each alias of a span; it may not remove any.
  template <typename Visit>
  void each_mapping(const Span& span, Visit visit) const {
    for (MappingIndex index = span.mapping; index != kNoMapping; index = mappings_list_[index].next)
      visit(mappings_list_[index]);
  }

  bool want_back(PageIndex first, PageIndex last);
  void lend_span(SpanIndex index);
  void come_back(SpanIndex index);
  void detach_mapping(MappingIndex mapping, Detached* detached);
  void detach_span(SpanIndex index, Detached* detached);
  const Leaving* another_detached(const Leaving& leaving, const Detached& detached) const;
  void discard(PageIndex first, PageIndex end) override;
  void count_moves(PageIndex from, PageIndex to) {
    if (from != kNoPage) page_left(address_of(from));
    if (to != kNoPage) page_came(address_of(to));
  }
  void count_mappings(std::int64_t change) {
    mappings_ += static_cast<std::uint64_t>(change);
    supply_.count_mappings(change);
  }

  Driver& driver_;
  const DeviceIndex device_;
  PageSupply& supply_;
  const Address base_;
  LazyArray<MappingIndex> mapping_;     // of a page
  std::vector<Span> spans_;             // [0] is a placeholder
  std::vector<Mapping> mappings_list_;  // so is [0]
  std::vector<SpanIndex> unused_spans_;
  std::vector<MappingIndex> unused_mappings_;
  std::unordered_map<PhysicalHandle, SpanIndex> spans_by_handle_;
  const bool fast_;  // growth: new memory before idle memory, as long as there is room
  const SpanRules rules_;
  const std::uint64_t max_mappings_;
  SpanStock stock_;                   // when last taken
  std::vector<PhysicalSpan> spare_;   // of the supply, then
  std::uint32_t widest_partial_ = 0;  // of its spans that are live in part
  enum class Making { grows, just_enough, none };
  PageIndex planned_end_ = 0;            // 0: no plan
  bool more_expected_ = false;           // of blocks, at once
  Making making_ = Making::grows;        // new memory, as far as the source allows
  Making first_making_ = Making::grows;  // how the next placement begins
  mutable std::uint32_t number_ = 0;     // of the placement that is judged
  mutable std::vector<std::uint32_t> spare_taken_;
  std::unordered_map<PhysicalHandle, Parting> parting_;
  Detached postponed_;    // not waited for
  Detached left_behind_;  // waited for, or never used
  bool asleep_ = false;
};

}  // namespace poolalloc
