#include "core/backing/segments.h"

#include <algorithm>

#include "core/base/check.h"

namespace poolalloc {

namespace {

// As torch's own allocator cuts its segments, so that the two are comparable.
constexpr Bytes kSmallBlock = Bytes{1} << 20;    // up to here, a segment of 2 MiB
constexpr Bytes kMediumBlock = Bytes{10} << 20;  // below, one of 20 MiB
constexpr Bytes kSmallSegment = Bytes{2} << 20;
constexpr Bytes kMediumSegment = Bytes{20} << 20;

}  // namespace

Segments::Segments(SegmentSupply& supply, AddressTable& addresses, Heap& owner, PageIndex split, PageIndex pages,
                   PageJournal* journal)
    : PageTable(split, pages, journal), supply_(supply), addresses_(addresses), owner_(owner), start_(pages) {}

SegmentNeed Segments::need_for(Bytes bytes) {
  const Bytes size = bytes <= kSmallBlock ? kSmallSegment : bytes < kMediumBlock ? kMediumSegment : bytes;
  return {round_up(bytes, kPageBytes) / kPageBytes, round_up(size, kPageBytes) / kPageBytes, ~Bytes{0}};
}

SegmentNeed Segments::need_alone(Bytes bytes) {
  const Bytes pages = round_up(bytes, kPageBytes) / kPageBytes;
  return {pages, pages, pages};
}

// --- coming ------------------------------------------------------------------------------------------------------

Status Segments::add(const SegmentNeed& need, PageIndex* first, PageIndex* end) {
  if (source_ == Source::none) return Status::out_of_memory;
  Segment segment;
  if (find_gap(need.wanted) == kNoPage) return Status::not_supported;
  if (const Status status = take(need, &segment); status != Status::ok) return status;
  *first = find_gap(segment.pages());
  if (*first == kNoPage) {  // a spare one that is larger than asked
    supply_.give(segment);
    return Status::not_supported;
  }
  *end = *first + static_cast<PageIndex>(segment.pages());
  place(segment, *first, *end);
  return Status::ok;
}

// A slab's page, with a segment of its own.
Status Segments::provide(PageIndex first, PageIndex last) {
  if (source_ == Source::none) return Status::out_of_memory;
  Segment segment;
  const Status status = take(need_alone((last - first + 1) * kPageBytes), &segment);
  if (status != Status::ok) return status;
  place(segment, first, last + 1);
  std::fill(&state_[first], &state_[last] + 1, kLiveAlone);
  return Status::ok;
}

Status Segments::take(const SegmentNeed& need, Segment* segment) {
  need_ = need;
  return supply_.take(need, segment);
}

// The lowest place in the second part that leaves a gap on both sides.
PageIndex Segments::find_gap(Bytes pages) const {
  Bytes first = touched_[1].first + 1;
  for (auto next = segments_.lower_bound(touched_[1].first); next != segments_.end(); ++next) {
    if (first + pages < next->first) break;
    first = next->second.end + Bytes{1};
  }
  return first + pages < page_count_ ? static_cast<PageIndex>(first) : kNoPage;
}

void Segments::place(const Segment& segment, PageIndex first, PageIndex end) {
  for (PageIndex page = first; page < end; ++page) {
    state_[page] = kIdleAlone;
    idle_since_[page] = tick_;
    start_[page] = segment.start() + (page - first) * kPageBytes;
    page_came(start_[page]);
  }
  tell_journal();
  touch(first, end - 1);
  addresses_.set_pages(segment.start(), first, end - first, &owner_);
  segments_[first] = {segment, end};
  held_.add(segment.bytes);
  maps_made_ += end - first;
  mappings_ += end - first;
}

const Segment* Segments::containing(Address address) const {
  const PageIndex page = addresses_.page_at(address, &owner_);
  if (page == kNoPage) return nullptr;
  return &std::prev(segments_.upper_bound(page))->second.segment;
}

// --- leaving -----------------------------------------------------------------------------------------------------

bool Segments::idle(const Map::value_type& place) const {
  const auto& [first, placed] = place;
  return !placed.leaving &&
         std::none_of(&state_[first], &state_[placed.end - 1] + 1, [](auto state) { return (state & kResident) != 0; });
}

Segments::Tick Segments::last_use(const Map::value_type& place) const {
  return *std::max_element(&idle_since_[place.first], &idle_since_[place.second.end - 1] + 1);
}

void Segments::detach_idle(std::uint32_t at_most, Detached* detached) {
  detached->insert(detached->end(), postponed_.begin(), postponed_.end());
  postponed_.clear();
  detach(at_most, [](Tick) { return true; }, detached);
}

void Segments::detach_idle_since(Tick tick, std::uint32_t at_most, Detached* detached) {
  detach(at_most, [tick](Tick last_use) { return last_use <= tick; }, detached);
}

// Idle segments whose last use will do, those first that were used longest ago.
template <typename Usable>
void Segments::detach(std::uint32_t at_most, Usable usable, Detached* detached) {
  std::vector<std::pair<Tick, Map::iterator>> found;  // by their last use
  if (at_most == 0) return;
  for (auto place = segments_.begin(); place != segments_.end(); ++place)
    if (idle(*place) && usable(last_use(*place))) found.emplace_back(last_use(*place), place);
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : a.second->first < b.second->first;
  });
  std::uint32_t pages = 0;
  for (const auto& [used, place] : found) {
    if (pages >= at_most) break;
    for (PageIndex page = place->first; page < place->second.end; ++page) state_[page] = kBlocked | kCounted;
    place->second.leaving = true;
    const std::uint32_t held = static_cast<std::uint32_t>(place->second.segment.bytes / kPageBytes);
    pages += held;
    leaving_ += held;
    detached->push_back({place->first, 0, 1, true});
  }
}

void Segments::postpone(const Detached& detached) {
  postponed_.insert(postponed_.end(), detached.begin(), detached.end());
}

std::uint32_t Segments::return_detached(const Detached& detached) {
  std::uint32_t pages = 0;
  for (const Leaving& leaving : detached) {
    const std::uint32_t held = take_out(segments_.find(leaving.page));
    pages += held;
    leaving_ -= held;
  }
  return pages;
}

// To the supply. Returns how many pages it holds.
std::uint32_t Segments::take_out(Map::iterator place) {
  const auto [first, placed] = *place;
  addresses_.set_pages(placed.segment.start(), 0, placed.end - first, nullptr);
  for (PageIndex page = first; page < placed.end; ++page) {
    state_[page] = 0;
    page_left(start_[page]);
    start_[page] = 0;
  }
  tell_journal();
  mappings_ -= placed.end - first;
  held_.subtract(placed.segment.bytes);
  segments_.erase(place);
  supply_.give(placed.segment);
  return static_cast<std::uint32_t>(placed.segment.bytes / kPageBytes);
}

void Segments::return_all() {
  while (!segments_.empty()) take_out(segments_.begin());
}

Bytes Segments::removable_bytes() const {
  Bytes bytes = 0;
  for (const auto& place : segments_)
    if (idle(place)) bytes += place.second.segment.bytes;
  return bytes;
}

// --- figures -----------------------------------------------------------------------------------------------------

void Segments::discard(PageIndex first, PageIndex end) {
  PageTable::discard(first, end);
  start_.discard(first, end);
}

Bytes Segments::metadata_bytes() const {
  constexpr Bytes kNode = sizeof(Map::value_type) + 4 * sizeof(void*);
  return PageTable::metadata_bytes() + tabled_pages() * sizeof(Address) + segments_.size() * kNode + sizeof(*this);
}

void Segments::validate(const std::vector<std::uint32_t>& blocks_of) const {
  PageTable::validate(blocks_of);
  Bytes held = 0, pages = 0, leaving = 0;
  PageIndex before = kNoPage;  // the end of the segment before in the second part
  for (const auto& [first, placed] : segments_) {
    POOLALLOC_ENSURE(first < placed.end && placed.end - first <= placed.segment.pages(),
                     "a segment has memory for its pages");
    if (first >= touched_[1].first) {
      POOLALLOC_ENSURE(before == kNoPage || before < first, "segments do not touch");
      before = placed.end;
    }
    for (PageIndex page = first; page < placed.end; ++page) {
      POOLALLOC_ENSURE(counts(page), "a page of a segment has memory");
      POOLALLOC_ENSURE(((state_[page] & kBlocked) != 0) == placed.leaving, "what leaves is blocked");
      POOLALLOC_ENSURE(start_[page] == placed.segment.start() + (page - first) * kPageBytes &&
                           addresses_.page_at(start_[page], &owner_) == page,
                       "addresses lead to their page and back");
    }
    held += placed.segment.bytes;
    pages += placed.end - first;
    if (placed.leaving) leaving += placed.segment.bytes / kPageBytes;
  }
  POOLALLOC_ENSURE(held_.current == static_cast<std::int64_t>(held), "segments held are counted");
  POOLALLOC_ENSURE(mappings_ == pages, "pages with memory are those of segments");
  POOLALLOC_ENSURE(leaving_ == leaving, "segments on their way out are counted");
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page) {
      if (state_[page] == 0) continue;
      const auto after = segments_.upper_bound(page);
      POOLALLOC_ENSURE(after != segments_.begin() && std::prev(after)->second.end > page,
                       "a page with memory is in a segment");
    }
}

}  // namespace poolalloc
