#include "core/backing/residency.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "core/base/check.h"

namespace poolalloc {

namespace {

// Chosen on recorded programs: docs/design/spans.md.
SpanRules rules_of(std::string_view growth) {
  SpanRules rules;
  if (growth == "tight") return rules;  // one page a span: none can be idle in part
  rules.largest = 128;
  rules.page_price = 300;
  rules.smallest_growth = 8;
  rules.largest_growth = 48;
  rules.growth_part = 1.0 / 64;
  return rules;
}

// The index of a record that nothing uses: one that was given back, or a new one.
template <typename Record>
std::uint32_t take_record(std::vector<Record>* records, std::vector<std::uint32_t>* unused) {
  if (unused->empty()) {
    records->emplace_back();
    return static_cast<std::uint32_t>(records->size() - 1);
  }
  const std::uint32_t index = unused->back();
  unused->pop_back();
  return index;
}

}  // namespace

std::uint32_t Residency::prepared_pages(const Options& options) { return rules_of(options.growth).smallest_growth; }

Residency::Residency(Driver& driver, DeviceIndex device, PageSupply& supply, Address base, PageIndex split,
                     PageIndex pages, const Options& options, PageJournal* journal)
    : PageTable(split, pages, journal),
      driver_(driver),
      device_(device),
      supply_(supply),
      base_(base),
      mapping_(pages),
      spans_(1),
      mappings_list_(1),
      fast_(options.growth == "fast"),
      rules_(rules_of(options.growth)),
      max_mappings_(static_cast<std::uint64_t>(options.max_mappings)) {}

// --- planning ----------------------------------------------------------------------------------------------------

// Idle pages at the start of a span and at its end.
std::pair<std::uint32_t, std::uint32_t> Residency::idle_ends(const Span& span) const {
  const PageIndex start = mappings_list_[span.mapping].start;
  std::uint32_t head = 0, tail = 0;
  while (head < span.pages && ready(start + head)) ++head;
  if (head == span.pages) return {head, head};
  while (ready(start + span.pages - 1 - tail)) ++tail;
  return {head, tail};
}

// When a block last died on one of its pages.
Residency::Tick Residency::last_use(const Mapping& mapping) const {
  const Tick* const since = &idle_since_[mapping.start];
  return *std::max_element(since, since + spans_[mapping.span].pages);
}

Residency::Tick Residency::last_use(const Span& span) const {
  Tick last = 0;
  each_mapping(span, [&](const Mapping& mapping) { last = std::max(last, last_use(mapping)); });
  return last;
}

void Residency::take_stock() {
  stock_.clear();
  spare_ = source_ == Source::none ? std::vector<PhysicalSpan>{} : supply_.spare();
  spare_taken_.assign(spare_.size(), 0);
  widest_partial_ = 0;
  const bool room = takes_new() && source_ != Source::none && making_ == Making::grows && supply_.room() != 0;
  std::vector<std::pair<Tick, SpanStock::Entry>> whole;
  whole.reserve(spare_.size() + spans_.size());
  for (std::uint32_t i = 0; i < spare_.size(); ++i)
    whole.push_back({0, {i | SpanStock::kSpare, spare_[i].pages, spare_[i].pages, spare_[i].pages}});
  for (SpanIndex index = 1; index < spans_.size(); ++index) {
    const Span& span = spans_[index];
    if (span.handle == 0 || span.away) continue;
    const auto [head, tail] = idle_ends(span);
    if (head != span.pages) widest_partial_ = std::max(widest_partial_, span.pages);
    if (room || (head == 0 && tail == 0)) continue;  // in a hurry, memory stays where it is
    if (head == span.pages)
      whole.push_back({1 + last_use(mappings_list_[span.mapping]), {index, span.pages, head, tail}});
    else
      stock_.partial.push_back({index, span.pages, head, tail});
  }
  std::stable_sort(whole.begin(), whole.end(), [](const auto& a, const auto& b) {
    return a.second.pages != b.second.pages ? a.second.pages > b.second.pages : a.first < b.first;
  });
  for (const auto& [since, entry] : whole) stock_.whole.push_back(entry);
}

// With several heaps, what counts is the sum of what they hold: they peak at different times.
GrowthRoom Residency::growth_room(std::uint32_t resident) const {
  constexpr auto kPage = static_cast<std::int64_t>(kPageBytes);
  const auto held = static_cast<std::int64_t>(supply_.held_pages());
  const auto beyond = [&](std::int64_t peak) {
    return static_cast<std::int64_t>(static_cast<double>(peak) * (1 + rules_.budget_part)) - held;
  };
  GrowthRoom room;
  const std::int64_t now = std::max(resident_.current, supply_.resident()) / kPage + resident;
  const std::int64_t peak = std::max(resident_.peak, supply_.resident_peak()) / kPage;
  room.free = beyond(std::max(now, peak));
  if (takes_new()) room.free = static_cast<std::int64_t>(supply_.room());
  switch (source_) {
    case Source::none:
      room.most = 0;
      break;
    case Source::back:
    case Source::spare:
      room.most = static_cast<std::uint64_t>(std::max<std::int64_t>(takes_new() ? room.free : beyond(peak), 0));
      break;
    case Source::any:
      break;
  }
  if (whose_ == Whose::doubtful_plan) {
    const auto margin = static_cast<std::int64_t>(plan_margin(static_cast<Bytes>(std::max(now, peak) * kPage))) / kPage;
    const std::int64_t most = std::max(now, peak) + margin - held;
    room.most = std::min(room.most, static_cast<std::uint64_t>(std::max<std::int64_t>(most, 0)));
  }
  if (making_ == Making::none) room.most = 0;
  if (making_ == Making::grows) {
    const double part = rules_.growth_part * static_cast<double>(held);
    const std::uint32_t chunk =
        std::clamp(static_cast<std::uint32_t>(part), rules_.smallest_growth, rules_.largest_growth);
    // A heap that holds little grows by little, and by more while it is being filled: that will be needed.
    const std::int64_t part_here = fast_ ? 4 : more_expected_ ? 8 : 40;
    room.chunk = static_cast<std::uint32_t>(std::clamp<std::int64_t>(held_.current / kPage / part_here, 1, chunk));
  }
  return room;
}

// Nothing lives on its pages, and all work that could come through it has completed. A page that is blocked, or ready
// a second time, has another alias; one that is away does without.
bool Residency::droppable(MappingIndex index) const {
  if (index == kDetached || !may_unmap_) return false;
  const Mapping& mapping = mappings_list_[index];
  const std::uint8_t* const state = &state_[mapping.start];
  const std::uint32_t pages = spans_[mapping.span].pages;
  if (std::any_of(state, state + pages, [](std::uint8_t each) { return (each & kResident) != 0; })) return false;
  return (spans_[mapping.span].away || spans_[mapping.span].aliases > 1) && last_use(mapping) <= completed_;
}

bool Residency::replaceable(PageIndex page) const { return droppable(mapping_[page]); }

// A run of empty pages, and those beside it. What hangs over stays in the run's part of the range.
EmptyRun Residency::run_at(PageIndex first, PageIndex last, bool outer_first, bool outer_last) const {
  EmptyRun run{last - first + 1, 0, 0};
  const PageIndex split = touched_[1].first;
  PageIndex low = first < split ? 0 : split, high = first < split ? split : page_count_;
  if (planned_end_ != 0 && first >= split) (first < planned_end_ ? high : low) = planned_end_;
  const std::uint32_t most = std::max({rules_.largest, supply_.largest_span(), widest_partial_});
  if (outer_first)
    for (PageIndex page = first; page > low && run.room_before < most && empty(page - 1); --page) ++run.room_before;
  if (outer_last)
    for (PageIndex page = last + 1; page < high && run.room_after < most && empty(page); ++page) ++run.room_after;
  return run;
}

Residency::Plan Residency::plan(PageIndex first, PageIndex last) const {
  Plan plan;
  const std::uint32_t number = ++number_;
  std::uint32_t resident = 0;
  for (PageIndex page = first; page <= last; ++page) {
    if (this->resident(page)) continue;
    ++resident;
    if (state_[page] == 0) continue;
    const MappingIndex index = mapping_[page];
    if (ready(page) && !rings_.repeats(page, first)) continue;
    if (index != kDetached && mappings_list_[index].dropped == number) continue;
    if (!droppable(index)) {
      plan.possible = false;
      return plan;
    }
    mappings_list_[index].dropped = number;
    plan.drops.push_back(index);
  }
  for (PageIndex page = first; page <= last; ++page)
    if (!this->resident(page) && !empty(page)) spans_[mappings_list_[mapping_[page]].span].taken = number;
  for (const MappingIndex index : plan.drops) {
    const std::uint32_t pages = spans_[mappings_list_[index].span].pages;
    plan.microseconds += rules_.prices.of(rules_.prices.unmap, pages);
  }
  plan.cost = plan.microseconds;
  GrowthRoom room = growth_room(resident);
  const auto excluded = [&](std::uint32_t index) {
    if ((index & SpanStock::kSpare) != 0) return spare_taken_[index ^ SpanStock::kSpare] == number;
    return spans_[index].taken == number;
  };
  for (PageIndex page = first; page <= last; ++page) {
    if (this->resident(page) || !empty(page)) continue;
    const PageIndex start = page;
    while (page < last && !this->resident(page + 1) && empty(page + 1)) ++page;
    const EmptyRun run = run_at(start, page, start == first, page == last);
    if (start >= planned_end_ && planned_end_ != 0) room.chunk = 1;  // nothing more is needed than what is asked for
    Fill fill = SpanFiller(rules_, stock_, excluded).fill(run, room);
    if (!fill.possible) {
      plan.possible = false;
      return plan;
    }
    for (const Fill::Piece& piece : fill.pieces) {
      if (piece.index == Fill::kNew) continue;
      if ((piece.index & SpanStock::kSpare) != 0)
        spare_taken_[piece.index ^ SpanStock::kSpare] = number;
      else
        spans_[piece.index].taken = number;
    }
    room.free -= fill.new_pages;
    room.most -= fill.new_pages;
    plan.microseconds += fill.microseconds;
    plan.cost += fill.cost;
    plan.parts.push_back({start, std::move(fill)});
  }
  return plan;
}

std::uint32_t Residency::longest_idle_row(PageIndex first, PageIndex end, PageIndex* start) const {
  std::uint32_t longest = 0, row = 0;
  PageIndex row_start = first;
  for (PageIndex page = next_ready(first, end); page < end;) {
    const Mapping& mapping = mappings_list_[mapping_[page]];
    const PageIndex next = mapping.start + spans_[mapping.span].pages;
    if (mapping.start != page || next > end || next_not_ready(page, next) != next) {
      row = 0;
      page = next_ready(std::max(next_not_ready(page, end), page + 1), end);
      continue;
    }
    if (row == 0) row_start = page;
    row += next - page;
    if (row > longest) {
      longest = row;
      *start = row_start;
    }
    if (const PageIndex after = next_ready(next, end); after != next) {
      row = 0;
      page = after;
    } else {
      page = next;
    }
  }
  return longest;
}

PageTable::Price Residency::price(PageIndex first, PageIndex last) const {
  const Plan found = plan(first, last);
  return {found.possible, found.cost};
}

// --- taking ------------------------------------------------------------------------------------------------------

void Residency::set_live(PageIndex first, PageIndex last, bool live) {
  if (live)
    make_live(first, last);
  else
    make_idle(first, last);
  tell_journal();
}

// All or nothing, but that pages may have lost mappings that no work could come through any more. Where memory runs out
// it makes do with just what the pages need, and then with what there is.
Status Residency::provide(PageIndex first, PageIndex last) {
  if (source_ == Source::back && want_back(first, last)) return Status::out_of_memory;
  Status status = Status::out_of_memory;
  constexpr int kRaces = 3;  // other heaps may take what lies spare
  bool slack = true, had_memory = false;
  for (const Making making : {Making::grows, Making::just_enough, Making::none}) {
    if (making < first_making_ || (making == Making::just_enough && !slack)) continue;
    making_ = making;
    for (int race = 0; race < kRaces; ++race) {
      take_stock();
      const Plan plan = this->plan(first, last);
      if (!plan.possible) {
        status = Status::out_of_memory;
        break;
      }
      slack = std::any_of(plan.parts.begin(), plan.parts.end(), [](const auto& part) { return part.fill.slack != 0; });
      status = carry_out(plan, first, last, &had_memory);
      if (status != Status::not_ready) break;
    }
    if (status != Status::out_of_memory || had_memory) break;
  }
  making_ = first_making_;
  if (status == Status::not_ready) status = Status::out_of_memory;
  if (status == Status::ok)
    make_live_where_idle(first, last);
  else if (status == Status::out_of_memory)
    missing_ = last - first + 1 - count_usable(first, last);
  tell_journal();
  return status;
}

// not_ready: somebody else took what was spare.
Status Residency::carry_out(const Plan& plan, PageIndex first, PageIndex last, bool* had_memory) {
  std::vector<Taken> taken;
  Status status = take_memory(plan, &taken);
  *had_memory = status == Status::ok;
  if (status != Status::ok) return status;
  const auto give_back = [&] {
    for (const Taken& each : taken)
      if (each.span == 0) supply_.give({each.handle, each.pages});
  };
  for (const MappingIndex index : plan.drops) {
    const Mapping mapping = mappings_list_[index];
    status = driver_.unmap(device_, address_of(mapping.start), spans_[mapping.span].pages * kPageBytes);
    if (status != Status::ok) {
      give_back();
      return status;
    }
    remove_mapping(index);
  }
  limit_mappings(taken.size(), first, last);
  return map_all(&taken);
}

// Handles for every piece, before the first mapping: running out of memory is common, and has nothing to unmap.
Status Residency::take_memory(const Plan& plan, std::vector<Taken>* taken) {
  std::vector<PhysicalHandle> spare;
  std::uint64_t new_pages = 0;
  for (const Plan::Part& part : plan.parts) new_pages += part.fill.new_pages;
  if (new_pages != 0 && !supply_.has_room(new_pages)) return Status::out_of_memory;
  for (const Plan::Part& part : plan.parts)
    for (const Fill::Piece& piece : part.fill.pieces)
      if (piece.index != Fill::kNew && (piece.index & SpanStock::kSpare) != 0)
        spare.push_back(spare_[piece.index ^ SpanStock::kSpare].handle);
  Status status = supply_.take_these(spare) ? Status::ok : Status::not_ready;
  std::size_t got = status == Status::ok ? spare.size() : 0;
  for (const Plan::Part& part : plan.parts) {
    PageIndex at = part.first - part.fill.lead;
    for (const Fill::Piece& piece : part.fill.pieces) {
      if (status != Status::ok) break;
      if (piece.index == Fill::kNew) {
        PageIndex end = at + piece.pages;
        for (std::uint32_t pages = piece.pages; at < end;) {  // smaller ones where the device has none so large
          PhysicalHandle handle = 0;
          status = supply_.make(pages, &handle);
          if (status == Status::ok) {
            taken->push_back({handle, pages, 0, at});
            at += pages;
          } else if (pages == 1 || status != Status::out_of_memory || !supply_.has_room(end - at)) {
            break;
          } else {
            pages = (pages + 1) / 2;
          }
          pages = std::min(pages, end - at);
        }
        continue;
      }
      if ((piece.index & SpanStock::kSpare) != 0) {
        taken->push_back({spare_[piece.index ^ SpanStock::kSpare].handle, piece.pages, 0, at});
      } else {
        taken->push_back({spans_[piece.index].handle, piece.pages, piece.index, at});
      }
      at += piece.pages;
    }
  }
  if (status == Status::ok) return status;
  // Spare ones that no piece has come to yet go back as well.
  for (const Taken& each : *taken) {
    if (each.span != 0) continue;
    supply_.give({each.handle, each.pages});
    std::erase(spare, each.handle);
  }
  if (got != 0)
    for (const PhysicalSpan& each : spare_)
      if (std::find(spare.begin(), spare.end(), each.handle) != spare.end()) supply_.give(each);
  taken->clear();
  return status;
}

// Maps every piece, then grants access run by run. All or nothing.
Status Residency::map_all(std::vector<Taken>* taken) {
  std::size_t mapped = 0;
  Status status = Status::ok;
  for (; mapped < taken->size(); ++mapped) {
    Taken& each = (*taken)[mapped];
    status = driver_.map(device_, address_of(each.start), each.pages * kPageBytes, each.handle);
    if (status != Status::ok) break;
    if (each.span != 0) {
      aliased_ += each.pages;
    } else {
      const auto known = spans_by_handle_.find(each.handle);
      if (known != spans_by_handle_.end()) come_back(known->second);
    }
    add_mapping(each.start, each.span != 0 ? each.span : add_span(each.handle, each.pages));
  }
  for (std::size_t i = 0; i < mapped && status == Status::ok;) {
    std::size_t end = i + 1;
    while (end < mapped && (*taken)[end].start == (*taken)[end - 1].start + (*taken)[end - 1].pages) ++end;
    const PageIndex first = (*taken)[i].start;
    const PageIndex last = (*taken)[end - 1].start + (*taken)[end - 1].pages;
    status = driver_.allow_access(device_, address_of(first), (last - first) * kPageBytes);
    i = end;
  }
  if (status == Status::ok) {
    for (const Taken& each : *taken) limit_aliases(mappings_list_[mapping_[each.start]].span);
    return status;
  }
  for (std::size_t i = 0; i < mapped; ++i) undo_map((*taken)[i]);
  for (std::size_t i = mapped; i < taken->size(); ++i)
    if ((*taken)[i].span == 0) supply_.give({(*taken)[i].handle, (*taken)[i].pages});
  return status;
}

// The mapping goes when the caller says that it may: not now, since a capture may be going on.
void Residency::undo_map(const Taken& taken) {
  const MappingIndex index = mapping_[taken.start];
  const SpanIndex span = mappings_list_[index].span;
  if (taken.span != 0) {
    aliased_ -= taken.pages;
    detach_mapping(index, &left_behind_);
  } else if (spans_[span].aliases > 1) {  // it came back from a loan, and stays
    detach_mapping(index, &left_behind_);
  } else {
    detach_span(span, &left_behind_);
  }
}

// --- spans and mappings ------------------------------------------------------------------------------------------

// Of memory that comes from the supply: new, or back from a loan.
Residency::SpanIndex Residency::add_span(PhysicalHandle handle, std::uint32_t pages) {
  if (const auto known = spans_by_handle_.find(handle); known != spans_by_handle_.end()) return known->second;
  const SpanIndex index = take_record(&spans_, &unused_spans_);
  spans_[index] = Span{handle, pages, 0, kNoMapping, false, 0};
  spans_by_handle_[handle] = index;
  held_.add(pages * kPageBytes);
  return index;
}

void Residency::drop_span(SpanIndex index) {
  away_ -= spans_[index].away;
  spans_by_handle_.erase(spans_[index].handle);
  spans_[index] = Span{};
  unused_spans_.push_back(index);
}

void Residency::add_mapping(PageIndex start, SpanIndex index) {
  const MappingIndex added = take_record(&mappings_list_, &unused_mappings_);
  Span& span = spans_[index];
  const MappingIndex other = span.mapping;
  mappings_list_[added] = Mapping{index, start, other, 0};
  span.mapping = added;
  ++span.aliases;
  count_mappings(1);
  maps_made_ += span.pages;
  touch(start, start + span.pages - 1);
  for (std::uint32_t i = 0; i < span.pages; ++i) {
    const PageIndex page = start + i;
    mapping_[page] = added;
    if (other == kNoMapping) {
      rings_.start(page);
      state_[page] = kIdleAlone;
      count_moves(kNoPage, page);
      continue;
    }
    const PageIndex twin = mappings_list_[other].start + i;
    rings_.join(page, twin);
    state_[twin] |= kAliased;
    state_[page] = kAliased | ((state_[twin] & (kResident | kBlocked)) != 0 ? kBlocked : kUsable);
    has_aliases_ = true;
  }
}

void Residency::remove_mapping(MappingIndex index) {
  const Mapping mapping = mappings_list_[index];
  Span& span = spans_[mapping.span];
  for (PageIndex page = mapping.start; page < mapping.start + span.pages; ++page) {
    const PageIndex other = rings_.next(page);
    rings_.leave(page);
    if (other != page) {
      if (counts(page)) {
        state_[other] |= kCounted;
        count_moves(page, other);
      }
      if (rings_.alone(other)) state_[other] &= static_cast<std::uint8_t>(~kAliased);
    }
    mapping_[page] = kNoMapping;
    state_[page] = 0;
  }
  MappingIndex* link = &span.mapping;
  while (*link != index) link = &mappings_list_[*link].next;
  *link = mapping.next;
  mappings_list_[index] = Mapping{};
  unused_mappings_.push_back(index);
  --span.aliases;
  count_mappings(-1);
  if (span.away && span.aliases == 0) drop_span(mapping.span);
}

// Unmaps an alias that is not the only one of its span, if that is here. If the driver refuses, it stays.
void Residency::drop_mapping(MappingIndex index) {
  const Mapping& mapping = mappings_list_[index];
  const Bytes bytes = spans_[mapping.span].pages * kPageBytes;
  if (driver_.unmap(device_, address_of(mapping.start), bytes) == Status::ok) remove_mapping(index);
}

// A span that has just been mapped may have one alias too many: the one unused for longest goes.
void Residency::limit_aliases(SpanIndex index) {
  const Span& span = spans_[index];
  if (span.aliases <= kMaxAliases) return;
  MappingIndex oldest = kNoMapping;
  Tick since = 0;
  for (MappingIndex each = mappings_list_[span.mapping].next; each != kNoMapping; each = mappings_list_[each].next) {
    if (!droppable(each)) continue;
    const Tick used = last_use(mappings_list_[each]);
    if (oldest != kNoMapping && used >= since) continue;
    oldest = each;
    since = used;
  }
  if (oldest != kNoMapping) drop_mapping(oldest);
}

// Before so many more mappings are made for pages first .. last, of which some are ready: those stay. A few more go
// than must, so that the next look through all is not due at once.
void Residency::limit_mappings(std::size_t wanted, PageIndex first, PageIndex last) {
  constexpr std::size_t kMore = 256;
  const std::uint64_t made = supply_.mappings() + wanted;
  if (made <= max_mappings_ || !may_unmap_) return;
  std::vector<std::pair<Tick, MappingIndex>> unused;
  for (MappingIndex index = 1; index < mappings_list_.size(); ++index) {
    const Mapping& mapping = mappings_list_[index];
    if (mapping.span == 0 || (mapping.start <= last && mapping.start + spans_[mapping.span].pages > first)) continue;
    if (droppable(index)) unused.push_back({last_use(mapping), index});
  }
  std::size_t going = std::min<std::size_t>(unused.size(), made - max_mappings_ + kMore);
  std::sort(unused.begin(), unused.end());
  for (const auto& [since, index] : unused) {
    if (going == 0) break;
    if (!droppable(index)) continue;  // it is the last of its span by now
    drop_mapping(index);
    --going;
  }
}

// Of the aliases of their memory, pages first .. last get one state and count, the others get another.
void Residency::set_aliases(PageIndex first, PageIndex last, std::uint8_t own, std::uint8_t others) {
  if (journal_kept()) [[unlikely]]
    count_at(first, last);
  std::uint8_t* const states = state_.data();
  own |= kCounted;
  others |= kAliased;
  rings_.visit_rings(
      first, last, [=](PageIndex page, bool alone) { states[page] = alone ? own : own | kAliased; },
      [=](PageIndex alias) { states[alias] = others; });
}

// Tells the journal, before states say so.
void Residency::count_at(PageIndex first, PageIndex last) {
  for (PageIndex page = first; page <= last; ++page)
    rings_.visit_others(page, [&](PageIndex alias) {
      if (counts(alias)) count_moves(alias, page);
    });
}

void Residency::make_live_where_idle(PageIndex first, PageIndex last) {
  for (PageIndex page = first; page <= last; ++page)
    if (!resident(page)) make_live(page, page);
}

std::uint32_t Residency::count_usable(PageIndex first, PageIndex last) const {
  std::uint32_t usable = 0;
  for (PageIndex page = first; page <= last; ++page) usable += this->usable(page);
  return usable;
}

// --- loans -------------------------------------------------------------------------------------------------------

// Spans of which no page was used since a tick, the longest idle first.
std::vector<Residency::SpanIndex> Residency::idle_spans(Tick since) const {
  std::vector<std::pair<Tick, SpanIndex>> found;
  for (SpanIndex index = 1; index < spans_.size(); ++index) {
    const Span& span = spans_[index];
    if (span.handle == 0 || !wholly_idle(span)) continue;
    if (const Tick used = last_use(span); used <= since) found.push_back({used, index});
  }
  std::sort(found.begin(), found.end(), [this](const auto& a, const auto& b) {
    const auto start = [this](SpanIndex index) { return mappings_list_[spans_[index].mapping].start; };
    return a.first != b.first ? a.first < b.first : start(a.second) < start(b.second);
  });
  std::vector<SpanIndex> spans;
  spans.reserve(found.size());
  for (const auto& each : found) spans.push_back(each.second);
  return spans;
}

// Notes the spans on loan that pages of the range would need back. False if there are none.
bool Residency::want_back(PageIndex first, PageIndex last) {
  for (PageIndex page = first; page <= last; ++page) {
    if ((state_[page] & kAway) == 0) continue;
    const PhysicalHandle handle = spans_[mappings_list_[mapping_[page]].span].handle;
    if (wanted_.empty() || wanted_.back() != handle) wanted_.push_back(handle);
  }
  return !wanted_.empty();
}

void Residency::lend_span(SpanIndex index) {
  Span& span = spans_[index];
  span.away = true;
  ++away_;
  each_mapping(span, [&](const Mapping& mapping) {
    for (PageIndex page = mapping.start; page < mapping.start + span.pages; ++page) {
      if (counts(page)) count_moves(page, kNoPage);
      state_[page] = (state_[page] & kAliased) | kBlocked | kAway;
    }
  });
  held_.subtract(span.pages * kPageBytes);
  supply_.give({span.handle, span.pages});
}

// Nothing has used it since it was given to the supply, or what has is done. It counts at its newest alias.
void Residency::come_back(SpanIndex index) {
  Span& span = spans_[index];
  span.away = false;
  --away_;
  const Mapping* const newest = &mappings_list_[span.mapping];
  each_mapping(span, [&](const Mapping& mapping) {
    const std::uint8_t counted = &mapping == newest ? kCounted : 0;
    for (PageIndex page = mapping.start; page < mapping.start + span.pages; ++page) {
      state_[page] = (state_[page] & kAliased) | kUsable | counted;
      if (counted != 0) count_moves(kNoPage, page);
    }
  });
  held_.add(span.pages * kPageBytes);
}

std::uint32_t Residency::lend(Tick tick, std::uint32_t at_most) {
  std::uint32_t pages = 0;
  if (at_most == 0) return 0;
  for (const SpanIndex index : idle_spans(tick)) {
    if (pages >= at_most) break;
    pages += spans_[index].pages;
    lend_span(index);
  }
  tell_journal();
  return pages;
}

std::uint32_t Residency::lend_these(const std::vector<PhysicalHandle>& handles, bool* running) {
  std::uint32_t pages = 0;
  for (const PhysicalHandle handle : handles) {
    const auto known = spans_by_handle_.find(handle);
    if (known == spans_by_handle_.end()) continue;
    const Span& span = spans_[known->second];
    if (!wholly_idle(span)) continue;  // live, or away
    if (last_use(span) <= completed_) {
      pages += span.pages;
      lend_span(known->second);
    } else {
      *running = true;
    }
  }
  tell_journal();
  return pages;
}

void Residency::take_back(const std::vector<PhysicalHandle>& handles) {
  for (const PhysicalHandle handle : handles)
    if (away(handle) && supply_.take_these({handle})) come_back(spans_by_handle_.at(handle));
  tell_journal();
}

void Residency::detach_lent(const std::vector<PhysicalHandle>& handles, Detached* detached) {
  for (const PhysicalHandle handle : handles) {
    if (!away(handle)) continue;
    const SpanIndex index = spans_by_handle_.at(handle);
    for (std::uint32_t left = spans_[index].aliases; left > 0; --left) detach_mapping(spans_[index].mapping, detached);
  }
  if (parting_.empty()) return;
  // Some were on their way out before the loan, and that has completed all that could use them.
  std::vector<PhysicalHandle> sorted = handles;
  std::sort(sorted.begin(), sorted.end());
  const auto stays = [&](const Leaving& each) {
    return !std::binary_search(sorted.begin(), sorted.end(), each.handle);
  };
  for (Detached* list : {&postponed_, &left_behind_}) {
    const auto first = std::stable_partition(list->begin(), list->end(), stays);
    detached->insert(detached->end(), first, list->end());
    list->erase(first, list->end());
  }
}

// --- leaving -----------------------------------------------------------------------------------------------------

// An alias of a span that has others, or is away: the driver still has it.
void Residency::detach_mapping(MappingIndex index, Detached* detached) {
  const Mapping mapping = mappings_list_[index];
  const PhysicalHandle handle = spans_[mapping.span].handle;
  const std::uint32_t pages = spans_[mapping.span].pages;
  remove_mapping(index);
  count_mappings(1);
  Parting& parting = parting_[handle];
  ++parting.mappings;
  parting.pages = pages;
  std::fill_n(&mapping_[mapping.start], pages, kDetached);
  std::fill_n(&state_[mapping.start], pages, kBlocked);
  detached->push_back({mapping.start, handle, pages, false});
}

// With all its aliases.
void Residency::detach_span(SpanIndex index, Detached* detached) {
  const Span span = spans_[index];
  Parting& parting = parting_[span.handle];
  parting.pages = span.pages;
  parting.span_goes = true;
  for (MappingIndex each = span.mapping; each != kNoMapping;) {
    const Mapping mapping = mappings_list_[each];
    for (PageIndex page = mapping.start; page < mapping.start + span.pages; ++page) {
      mapping_[page] = kDetached;
      state_[page] = kBlocked | (state_[page] & kCounted);
    }
    ++parting.mappings;
    detached->push_back({mapping.start, span.handle, span.pages, false});
    mappings_list_[each] = Mapping{};
    unused_mappings_.push_back(each);
    each = mapping.next;
  }
  drop_span(index);
  leaving_ += span.pages;
}

void Residency::detach_idle(std::uint32_t at_most, Detached* detached) {
  detached->insert(detached->end(), postponed_.begin(), postponed_.end());
  postponed_.clear();
  detach_idle_since(~Tick{0}, at_most, detached);
}

void Residency::detach_idle_since(Tick tick, std::uint32_t at_most, Detached* detached) {
  if (at_most == 0) return;
  std::uint32_t pages = 0;
  for (const SpanIndex index : idle_spans(tick)) {
    if (pages >= at_most) break;
    pages += spans_[index].pages;
    detach_span(index, detached);
  }
}

void Residency::detach_left_behind(Detached* detached) {
  detached->insert(detached->end(), left_behind_.begin(), left_behind_.end());
  left_behind_.clear();
}

// Aliases with a blocked page that nothing lives on.
void Residency::detach_blocked(Detached* detached) {
  for (MappingIndex index = 1; index < mappings_list_.size(); ++index) {
    const Mapping& mapping = mappings_list_[index];
    if (mapping.span == 0) continue;
    const Span& span = spans_[mapping.span];
    if (!span.away && span.aliases == 1) continue;
    std::uint8_t any = 0;
    for (PageIndex page = mapping.start; page < mapping.start + span.pages; ++page) any |= state_[page];
    if ((any & kBlocked) != 0 && (any & kResident) == 0) detach_mapping(index, detached);
  }
}

void Residency::unmap_detached(Detached* detached) const {
  for (Leaving& leaving : *detached)
    leaving.unmapped = driver_.unmap(device_, address_of(leaving.page), leaving.pages * kPageBytes) == Status::ok;
}

std::uint32_t Residency::return_detached(const Detached& detached) {
  std::uint32_t pages = 0;
  for (const Leaving& leaving : detached) {
    if (!leaving.unmapped) {
      left_behind_.push_back(leaving);
      continue;
    }
    count_mappings(-1);
    const auto parting = parting_.find(leaving.handle);
    const Leaving* const other = --parting->second.mappings != 0 ? another_detached(leaving, detached) : nullptr;
    for (std::uint32_t i = 0; i < leaving.pages; ++i) {
      const PageIndex page = leaving.page + i;
      if (counts(page)) {
        const PageIndex next = other != nullptr ? other->page + i : kNoPage;
        count_moves(page, next);
        if (next != kNoPage) state_[next] |= kCounted;
      }
      mapping_[page] = kNoMapping;
      state_[page] = 0;
    }
    if (parting->second.mappings != 0) continue;
    if (parting->second.span_goes) {
      supply_.give({leaving.handle, leaving.pages});
      held_.subtract(leaving.pages * kPageBytes);
      leaving_ -= leaving.pages;
      pages += leaving.pages;
    }
    parting_.erase(parting);
  }
  tell_journal();
  return pages;
}

// One more alias of the same span that is still to be unmapped.
const PageTable::Leaving* Residency::another_detached(const Leaving& leaving, const Detached& detached) const {
  for (const Detached* list : {&detached, &left_behind_, &postponed_})
    for (const Leaving& other : *list)
      if (other.handle == leaving.handle && other.page != leaving.page && mapping_[other.page] == kDetached)
        return &other;
  return nullptr;
}

void Residency::postpone(const Detached& detached) {
  postponed_.insert(postponed_.end(), detached.begin(), detached.end());
}

void Residency::return_left_behind() {
  Detached again;
  again.swap(left_behind_);
  unmap_detached(&again);
  return_detached(again);
}

Status Residency::allow_access_to_mapped() {
  const auto mapped = [this](PageIndex page) { return mapping_[page] != kNoMapping && mapping_[page] != kDetached; };
  for (const Range& part : touched_)
    for (PageIndex first = part.first, end; first < part.end; first = end + 1) {
      for (end = first; end < part.end && mapped(end);) ++end;
      if (end == first) continue;
      const Status status = driver_.allow_access(device_, address_of(first), (end - first) * kPageBytes);
      if (status != Status::ok) return status;
    }
  return Status::ok;
}

bool Residency::pieces(PageIndex first, PageIndex last, std::vector<Piece>* pieces) const {
  for (PageIndex page = first; page <= last;) {
    const Mapping& mapping = mappings_list_[mapping_[page]];
    const Span& span = spans_[mapping.span];
    pieces->push_back({span.handle, mapping.start, span.pages});
    page = mapping.start + span.pages;
  }
  return true;
}

void Residency::return_all() {
  if (asleep_) return;  // it has none
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page)
      if (counts(page)) count_moves(page, kNoPage);
  for (const Span& span : spans_) {
    if (span.handle == 0) continue;
    each_mapping(span, [&](const Mapping& mapping) {
      driver_.unmap(device_, address_of(mapping.start), span.pages * kPageBytes);
    });
    if (!span.away) supply_.give({span.handle, span.pages});
  }
  for (const Detached* list : {&postponed_, &left_behind_})
    for (const Leaving& leaving : *list) driver_.unmap(device_, address_of(leaving.page), leaving.pages * kPageBytes);
  for (const auto& [handle, parting] : parting_)
    if (parting.span_goes) supply_.give({handle, parting.pages});
  tell_journal();
  supply_.count_mappings(-static_cast<std::int64_t>(mappings_));
}

// --- figures -----------------------------------------------------------------------------------------------------

Bytes Residency::metadata_bytes() const {
  constexpr Bytes kNode = sizeof(decltype(spans_by_handle_)::value_type) + 2 * sizeof(void*);
  const auto bytes = [](const auto& list) { return list.capacity() * sizeof(list[0]); };
  return PageTable::metadata_bytes() + tabled_pages() * sizeof(MappingIndex) + bytes(spans_) + bytes(mappings_list_) +
         bytes(unused_spans_) + bytes(unused_mappings_) + bytes(stock_.whole) + bytes(stock_.partial) + bytes(spare_) +
         bytes(spare_taken_) + spans_by_handle_.size() * kNode + sizeof(*this);
}

void Residency::shed() {
  shed_tables();
  const auto shed_records = [](auto& records, auto& unused) {
    std::sort(unused.begin(), unused.end());
    for (; !unused.empty() && unused.back() == records.size() - 1; unused.pop_back()) records.pop_back();
    std::reverse(unused.begin(), unused.end());  // low ones first from now on
    records.shrink_to_fit();
    unused.shrink_to_fit();
  };
  shed_records(spans_, unused_spans_);
  shed_records(mappings_list_, unused_mappings_);
  stock_ = SpanStock{};
  std::vector<PhysicalSpan>().swap(spare_);
  std::vector<std::uint32_t>().swap(spare_taken_);
}

void Residency::discard(PageIndex first, PageIndex end) {
  PageTable::discard(first, end);
  mapping_.discard(first, end);
}

void Residency::validate(const std::vector<std::uint32_t>& blocks_of) const {
  PageTable::validate(blocks_of);
  std::uint64_t detached = 0, counted_leaving = 0, mapped = 0;
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page) {
      const std::uint8_t state = state_[page];
      POOLALLOC_ENSURE(((state & (kUsable | kBlocked)) != 0) == (mapping_[page] != kNoMapping),
                       "a page is usable or blocked if it is mapped");
      if (mapping_[page] == kDetached) {
        POOLALLOC_ENSURE((state & ~kCounted) == kBlocked, "a detached page is blocked");
        counted_leaving += (state & kCounted) != 0;
        ++detached;
      } else if (mapping_[page] != kNoMapping) {
        const Mapping& mapping = mappings_list_[mapping_[page]];
        POOLALLOC_ENSURE(
            mapping.span != 0 && page >= mapping.start && page < mapping.start + spans_[mapping.span].pages,
            "a page belongs to the mapping that covers it");
        ++mapped;
      }
    }
  std::uint64_t held = 0, aliases = 0, alias_pages = 0;
  for (SpanIndex index = 1; index < spans_.size(); ++index) {
    const Span& span = spans_[index];
    if (span.handle == 0) continue;
    const auto known = spans_by_handle_.find(span.handle);
    POOLALLOC_ENSURE(known != spans_by_handle_.end() && known->second == index, "a handle leads to its span");
    if (!span.away) held += span.pages;
    std::uint32_t count = 0;
    each_mapping(span, [&](const Mapping& mapping) {
      POOLALLOC_ENSURE(mapping.span == index, "an alias belongs to its span");
      for (PageIndex page = mapping.start; page < mapping.start + span.pages; ++page)
        POOLALLOC_ENSURE(&mappings_list_[mapping_[page]] == &mapping, "the pages of an alias know it");
      ++count;
    });
    POOLALLOC_ENSURE(count == span.aliases && count != 0, "the aliases of a span are counted");
    aliases += count;
    alias_pages += std::uint64_t{count} * span.pages;
    for (std::uint32_t i = 0; i < span.pages; ++i) {
      std::uint32_t live = 0, counted = 0, ring = 0, ends = 0;
      each_mapping(span, [&](const Mapping& mapping) {
        live += resident(mapping.start + i);
        counted += counts(mapping.start + i);
      });
      POOLALLOC_ENSURE(live <= 1 && !(span.away && live != 0),
                       "a page of a span is live at one alias only, and at none on loan");
      POOLALLOC_ENSURE(counted == !span.away, "a page of a span that is here counts at one alias");
      const auto check = [&](PageIndex page) {
        const std::uint8_t state = state_[page];
        POOLALLOC_ENSURE(((state & kAliased) != 0) == (span.aliases > 1), "aliases are marked");
        POOLALLOC_ENSURE(((state & kAway) != 0) == span.away, "pages of a span on loan are marked");
        POOLALLOC_ENSURE(((state & kBlocked) != 0) == (span.away || (live == 1 && (state & kResident) == 0)),
                         "an alias of a page that is live or away is blocked");
        POOLALLOC_ENSURE((state & kResident) == 0 || (state & kCounted) != 0, "memory counts where it is live");
        ++ring;
        ends += rings_.next(page) >= page;
      };
      const PageIndex page = mappings_list_[span.mapping].start + i;
      check(page);
      rings_.visit_others(page, check);
      POOLALLOC_ENSURE(ends == 1 && ring == span.aliases, "the aliases of a page lead downwards and round once");
    }
  }
  POOLALLOC_ENSURE(mapped == alias_pages, "every mapped page belongs to an alias");
  std::uint64_t parting_mappings = 0, parting_pages = 0, parting_held = 0;
  for (const auto& [handle, parting] : parting_) {
    parting_mappings += parting.mappings;
    parting_pages += std::uint64_t{parting.mappings} * parting.pages;
    if (parting.span_goes) parting_held += parting.pages;
  }
  POOLALLOC_ENSURE(parting_pages == detached, "every detached page is on its way out");
  POOLALLOC_ENSURE(parting_held == leaving_ && counted_leaving == leaving_,
                   "every page of a span on its way out counts once");
  POOLALLOC_ENSURE(held_.current == static_cast<std::int64_t>((held + leaving_) * kPageBytes),
                   "pages held = pages of spans that are here or on their way out");
  POOLALLOC_ENSURE(mappings_ == aliases + parting_mappings, "mappings = aliases + detached mappings");
}

}  // namespace poolalloc
