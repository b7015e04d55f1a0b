#include "core/backing/page_table.h"

#include <algorithm>
#include <bit>

#include "core/base/check.h"

namespace poolalloc {

PageTable::PageTable(PageIndex split, PageIndex pages, PageJournal* journal)
    : page_count_(pages),
      journal_(journal),
      state_(pages + sizeof(std::uint64_t)),  // words are read from anywhere
      rings_(pages),
      sharers_(pages),
      idle_since_(pages),
      touched_{{0, 0}, {split, split}},
      owner_(pages),
      part_used_(pages / kPartPages + 1) {}

namespace {

// Most blocks lie on a page or two: not worth a call of memset.
template <typename T>
void fill(T* first, T* end, T value) {
  if (end - first <= 2) {
    for (; first < end; ++first) *first = value;
  } else {
    std::fill(first, end, value);
  }
}

}  // namespace

std::uint32_t PageTable::count(PageIndex first, PageIndex last, std::uint8_t bit) const {
  const auto has = [bit](std::uint8_t state) { return (state & bit) != 0; };
  return static_cast<std::uint32_t>(std::count_if(&state_[first], &state_[last] + 1, has));
}

// What cost() cannot see by counting: pages that need the driver, and cannot be had or not at hand after all, as their
// memory is at hand for a page before them.
void PageTable::judge(PageIndex first, PageIndex last, Cost* cost) const {
  for (PageIndex page = first; page <= last; ++page) {
    const std::uint8_t state = state_[page];
    if (state == 0 || (state & kResident) != 0) continue;
    if ((state & (kUsable | asked_back_)) != 0) {
      if (!rings_.repeats(page, first)) continue;
      ++cost->maps;
      if ((state & kUsable) == 0) --cost->back;
    }
    if (!replaceable(page)) {
      cost->possible = false;
      return;
    }
  }
}

PageIndex PageTable::next_ready(PageIndex first, PageIndex end) const {
  constexpr std::uint64_t kMask = kEach * (kUsable | kResident), kReady = kEach * kUsable;
  const std::uint8_t* const states = state_.data();
  std::uint64_t eight;
  while (first + 8 <= end) {
    std::memcpy(&eight, states + first, 8);
    const std::uint64_t other = (eight & kMask) ^ kReady;  // a byte is zero where the page is ready
    if (const std::uint64_t zero = (other - kEach) & ~other & kEach << 7; zero != 0)
      return first + static_cast<PageIndex>(std::countr_zero(zero)) / 8;
    first += 8;
  }
  while (first < end && !ready(first)) ++first;
  return first;
}

PageIndex PageTable::next_not_ready(PageIndex first, PageIndex end) const {
  constexpr std::uint64_t kMask = kEach * (kUsable | kResident), kReady = kEach * kUsable;
  const std::uint8_t* const states = state_.data();
  std::uint64_t eight;
  while (first + 8 <= end) {
    std::memcpy(&eight, states + first, 8);
    if (const std::uint64_t other = (eight & kMask) ^ kReady; other != 0)
      return first + static_cast<PageIndex>(std::countr_zero(other)) / 8;
    first += 8;
  }
  while (first < end && ready(first)) ++first;
  return first;
}

PageIndex PageTable::after_repeats(PageIndex first, PageIndex last) const {
  if (!has_aliases_ || (count(first, last).any & kAliased) == 0 || !rings_.any_repeats(first, last)) return first;
  for (PageIndex page = first; page <= last; ++page)
    if ((state_[page] & kAliased) != 0 && rings_.repeats(page, first)) first = rings_.next(page) + 1;
  return first;
}

PageIndex PageTable::first_repeat(PageIndex first, PageIndex last) const {
  if (!has_aliases_ || (count(first, last).any & kAliased) == 0) return kNoPage;
  for (PageIndex page = first; page <= last; ++page)
    if ((state_[page] & kAliased) != 0 && rings_.repeats(page, first)) return page;
  return kNoPage;
}

void PageTable::touch(PageIndex first, PageIndex last) {
  Range& span = touched_[last >= touched_[1].first];
  if (last >= span.end) span.end = last + 1;
  for (PageIndex part = first / kPartPages; part <= last / kPartPages; ++part) {
    used_parts_ += !part_used_[part];
    part_used_[part] = true;
  }
}

// Only the outer pages can carry other blocks; every page between them is this block's alone.
Status PageTable::acquire(PageIndex first, PageIndex last, const Cost& cost) {
  const bool first_shared = resident(first), last_shared = last != first && resident(last);
  const std::uint32_t pages = last - first + 1;
  if (cost.driver()) [[unlikely]] {
    touch(first, last);
    const Status status = provide(first, last);
    if (status != Status::ok) return status;
  } else if (cost.aliased) {
    set_live(first, last, true);
  } else {
    fill(&state_[first], &state_[first] + pages, kLiveAlone);
  }
  resident_.add((pages - first_shared - last_shared) * kPageBytes);
  sharers_[first] += first_shared;
  sharers_[last] += last_shared;
  return Status::ok;
}

void PageTable::release_pages(PageIndex first, PageIndex last) {
  ++tick_;
  const bool several = first != last;
  if (sharers_[first] != 0) --sharers_[first++];  // other blocks keep the outer pages resident
  if (several && sharers_[last] != 0) --sharers_[last--];
  if (first > last) return;
  const std::uint32_t pages = last - first + 1;
  fill(&idle_since_[first], &idle_since_[last] + 1, tick_);
  if (has_aliases_ && (count(first, last).any & kAliased) != 0) [[unlikely]]
    set_live(first, last, false);
  else
    fill(&state_[first], &state_[first] + pages, kIdleAlone);
  resident_.subtract(pages * kPageBytes);
}

Bytes PageTable::metadata_bytes() const {
  constexpr Bytes kPerPage =
      sizeof(std::uint8_t) + sizeof(std::uint16_t) + sizeof(Tick) + sizeof(PageIndex) + sizeof(void*);
  return tabled_pages() * kPerPage + part_used_.size() / 8;
}

// No page of it has memory, and nobody has left anything in the slot of one.
bool PageTable::part_empty(PageIndex part) const {
  const PageIndex first = part * kPartPages, end = std::min(first + kPartPages, page_count_);
  return std::all_of(&state_[first], &state_[end - 1] + 1, [](std::uint8_t state) { return state == 0; }) &&
         std::all_of(&owner_[first], &owner_[end - 1] + 1, [](const void* owner) { return owner == nullptr; });
}

// Narrow entries share a page of the host's over several parts, so runs of empty parts go together, used ones or not.
void PageTable::shed_tables() {
  constexpr PageIndex kTogether = 8;
  maps_at_shed_ = maps_made_;
  const PageIndex parts = (page_count_ + kPartPages - 1) / kPartPages;
  for (PageIndex group = 0; group < parts; group += kTogether) {
    const PageIndex end = std::min(group + kTogether, parts);
    const auto used = [this](PageIndex part) { return static_cast<bool>(part_used_[part]); };
    PageIndex part = group;
    while (part < end && !used(part)) ++part;
    if (part == end) continue;
    for (PageIndex first = group, run = group; first < end; first = run + 1) {
      bool any = false;
      for (run = first; run < end && part_empty(run); ++run) any |= used(run);
      if (!any) continue;
      discard(first * kPartPages, std::min(run * kPartPages, page_count_));
      for (part = first; part < run; ++part) {
        used_parts_ -= used(part);
        part_used_[part] = false;
      }
    }
  }
  for (Range& span : touched_)
    while (span.end > span.first && (state_[span.end - 1] == 0)) --span.end;
}

void PageTable::discard(PageIndex first, PageIndex end) {
  state_.discard(first, end);
  rings_.discard(first, end);
  sharers_.discard(first, end);
  idle_since_.discard(first, end);
  owner_.discard(first, end);
}

void PageTable::validate(const std::vector<std::uint32_t>& blocks_of) const {
  Bytes resident = 0;
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page) {
      const std::uint8_t state = state_[page];
      POOLALLOC_ENSURE(((state & kResident) != 0) == (blocks_of[page] != 0), "a page is resident if blocks overlap it");
      POOLALLOC_ENSURE(blocks(page) == blocks_of[page] && (blocks(page) != 0 || sharers_[page] == 0),
                       "blocks counted on a page are the blocks that overlap it");
      POOLALLOC_ENSURE((state & kResident) == 0 || (state & kUsable) != 0, "a resident page has memory");
      POOLALLOC_ENSURE((state & kUsable) == 0 || (state & kBlocked) == 0, "a usable page is not blocked");
      if ((state & kResident) != 0) resident += kPageBytes;
    }
  POOLALLOC_ENSURE(resident_.current == static_cast<std::int64_t>(resident), "resident pages are counted");
}

}  // namespace poolalloc
