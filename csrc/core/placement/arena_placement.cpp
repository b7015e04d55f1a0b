// Where blocks go: to a ready place, the lowest one first; else to the place whose pages cost least, in microseconds of
// the driver.
//
// Source: the order among ready places, the rows of growing blocks and the candidates at a price were found on recorded
// programs (docs/design/spans.md).
#include <algorithm>
#include <bit>

#include "core/placement/arena.h"

namespace poolalloc {

namespace {
PageIndex page_of(Bytes offset) { return static_cast<PageIndex>(offset / kPageBytes); }
}  // namespace

// --- ready places ------------------------------------------------------------------------------------------------

Arena::Place Arena::ready_place(Bytes size) {
  Place best = next_to_its_kind(size);
  if (!best.found() && placed_in_a_row_ >= kBurst) best = beside_the_last(size);
  if (best.found()) return best;
  const ReadyScore score = ready_score();
  int left = kReadyHoles;
  for (Block* hole = holes_.at_least(size); hole != nullptr && left-- > 0; hole = hole->larger) {
    if (score.least(hole->size) >= best.score) return best;  // no larger one is better
    if (score(hole->size, hole->offset - first_offset_) >= best.score) continue;
    look_for_ready(hole, size, score, &best);
    if (hole->size == size && best.hole == hole) return best;  // what a repeating program leaves behind
  }
  if (top_ + size <= end_offset() && score(kEndless, top_ - first_offset_) < best.score)
    look_for_ready(nullptr, size, score, &best);
  return !best.found() && residency_.asks_back() ? place_on_loan(size) : best;
}

// Where memory is mapped already but went to other streams, and may be asked back with no driver call: streams that
// take turns find their memory where they left it.
Arena::Place Arena::place_on_loan(Bytes size) const {
  Place best;
  const ReadyScore score = ready_score();
  const auto look = [&](Block* hole) {
    const Bytes low = low_of(hole);
    const Bytes high = hole != nullptr ? hole->end() : std::max(low, Bytes{residency_.untouched()} * kPageBytes);
    Bytes begin = low;
    for (Bytes at = low; at < high && begin + size <= high;) {
      const PageIndex page = page_of(at);
      at = std::min(high, (Bytes{page} + 1) * kPageBytes);
      if (!residency_.resident(page) && !residency_.at_hand(page)) {
        begin = at;
        continue;
      }
      if (at - begin < size) continue;
      const double found = score(hole != nullptr ? hole->size : kEndless, begin - first_offset_);
      if (found >= best.score) return;
      const PageTable::Cost cost = residency_.cost(page_of(begin), page_of(begin + size - 1));
      if (cost.possible && cost.maps == 0) {
        best = {hole, begin, found, false};
        return;
      }
      begin = std::min(high, (Bytes{page_of(begin)} + 1) * kPageBytes);  // some memory is there twice
    }
  };
  int left = kReadyHoles;
  for (Block* hole = holes_.at_least(size); hole != nullptr && left-- > 0; hole = hole->larger) look(hole);
  if (top_ + size <= end_offset()) look(nullptr);
  return best;
}

bool Arena::ready_at(Block* hole, Bytes offset, Bytes size) const {
  return offset + size <= high_of(hole) && residency_.usable(page_of(offset), page_of(offset + size - 1));
}

// In the hole, or the addresses from the top on, that begin where a block ended.
Arena::Place Arena::at_end_of(Bytes end, Bytes size) const {
  if (end <= first_offset_) return {};  // nothing was placed yet, and other parts of the heap keep records there
  Block* hole = nullptr;
  if (end < top_) {
    hole = at(end);
    if (hole == nullptr || hole->live()) return {};
  }
  return end <= top_ && ready_at(hole, end, size) ? Place{hole, end, 0, false} : Place{};
}

// Growing blocks of one size lie in one row (cohorts.h).
Arena::Place Arena::next_to_its_kind(Bytes size) {
  const Bytes row = cohorts_.row_for(size);
  if (row == 0) return {};
  if (const Bytes end = cohorts_.last_end(size); end > size && end > first_offset_) {
    const Block* last = end <= top_ ? at(end - size) : nullptr;
    if (last != nullptr && last->in_use() && last->size == size)
      if (const Place place = at_end_of(end, size); place.found()) return place;
  }
  return row > size ? row_with_room(size, row) : Place{};
}

// The lowest run of ready pages with room for the whole row, else the longest if it has room for some of it.
Arena::Place Arena::row_with_room(Bytes size, Bytes row) {
  constexpr Bytes kSome = 4;  // blocks
  Place lowest;
  Run longest{nullptr, 0, 0};
  int left = kReadyHoles;
  const auto look = [&](Block* hole) {
    visit_ready(hole, [&](Bytes begin, Bytes end) {
      if (end - begin < size) return true;
      if (const PageIndex repeat = residency_.first_repeat(page_of(begin), page_of(end - 1)); repeat != kNoPage)
        end = std::max(begin, repeat * kPageBytes);
      if (end - begin < size) return true;
      if (end - begin > longest.end - longest.begin) longest = {hole, begin, end};
      if (end - begin >= row && (!lowest.found() || begin < lowest.offset)) lowest = {hole, begin, 0, false};
      return true;
    });
  };
  for (Block* hole = holes_.at_least(size); hole != nullptr && left-- > 0; hole = hole->larger) look(hole);
  look(nullptr);
  if (!lowest.found() && longest.end - longest.begin >= kSome * size) lowest = {longest.hole, longest.begin, 0, false};
  return lowest;
}

// Blocks that come one after the other, as in a forward pass, die together: they lie in one row of idle memory.
Arena::Place Arena::beside_the_last(Bytes size) {
  if (const Place place = at_end_of(last_end_, size); place.found()) return place;
  constexpr std::uint32_t kTimes = 2;
  std::uint32_t longest = kTimes * page_of(round_up(size, kPageBytes)) - 1;
  Place best;
  int left = kReadyHoles;
  for (Block* hole = holes_.largest(); hole != nullptr && hole->size >= size && left-- > 0; hole = hole->smaller) {
    PageIndex start = 0;
    const std::uint32_t row =
        residency_.longest_idle_row(page_of(round_up(hole->offset, kPageBytes)), page_of(hole->end()), &start);
    if (row <= longest || !ready_at(hole, start * kPageBytes, size)) continue;
    longest = row;
    best = {hole, start * kPageBytes, 0, false};
  }
  return best;
}

// Until it says false.
template <typename Visit>
void Arena::visit_ready(Block* hole, Visit visit) const {
  const Bytes low = low_of(hole), high = high_of(hole);
  const PageIndex first = page_of(round_up(low, kPageBytes)), whole_end = page_of(high);
  const PageIndex end = hole != nullptr ? whole_end : std::min(whole_end, std::max(first, residency_.untouched()));
  for (PageIndex run = residency_.next_ready(first, end), run_end; run < end;
       run = residency_.next_ready(run_end, end)) {
    run_end = residency_.next_not_ready(run, end);
    const Bytes from = run == first ? low : run * kPageBytes;
    if (!visit(from, run_end == whole_end && hole != nullptr ? high : run_end * kPageBytes)) return;
  }
}

// A page that the hole does not cover whole is resident, since neighbours of a hole are live.
void Arena::look_for_ready(Block* hole, Bytes size, const ReadyScore& score, Place* best) const {
  const Bytes low = low_of(hole), high = high_of(hole);
  const PageIndex first = page_of(round_up(low, kPageBytes)), whole_end = page_of(high);
  if (hole != nullptr && whole_end <= first) return consider_ready(hole, low, high, size, score, best);
  if (first * kPageBytes - low >= size) consider_ready(hole, low, first * kPageBytes, size, score, best);
  if (hole != nullptr && high - whole_end * kPageBytes >= size)
    consider_ready(hole, high - size, high, size, score, best);
  visit_ready(hole, [&](Bytes begin, Bytes end) {
    if (end - begin >= size) consider_ready(hole, begin, end, size, score, best);
    return best->hole != hole || !best->found();  // the lowest of a hole is its best
  });
}

// The lowest place in [begin, end), whose pages are ready or resident.
void Arena::consider_ready(Block* hole, Bytes begin, Bytes end, Bytes size, const ReadyScore& score,
                           Place* best) const {
  for (;;) {  // no memory twice
    const PageIndex first = page_of(begin), from = residency_.after_repeats(first, page_of(begin + size - 1));
    if (from == first) break;
    begin = from * kPageBytes;
    if (begin + size > end) return;
  }
  const double found = score(hole != nullptr ? hole->size : kEndless, begin - first_offset_);
  if (found < best->score) *best = {hole, begin, found, false};
}

Arena::ReadyScore Arena::ready_score() const {
  constexpr double kDistance = 40;
  const auto held = static_cast<double>(residency_.held().current + 1);
  return cohorts_.active() ? ReadyScore{1 / held, false} : ReadyScore{kDistance / held, true};
}

// --- places at a price -------------------------------------------------------------------------------------------

Status Arena::place_at_a_price(Bytes size, Place* place) {
  const auto width = page_of(round_up(size, kPageBytes));
  Status status = Status::out_of_memory;
  residency_.expect_more(placed_in_a_row_ >= kFilling);
  for (const bool may_grow : {true, false}) {  // there may be room, but not at the place that was best while growing
    residency_.may_grow(may_grow);
    residency_.take_stock();
    *place = priced_place(size);
    if (place->found())
      status = residency_.acquire(page_of(place->offset), page_of(place->offset + size - 1));
    else
      residency_.lack(width);
    if (status != Status::out_of_memory) break;
  }
  residency_.may_grow(true);
  residency_.expect_more(false);
  if (status == Status::ok && place->fresh && width >= kWideRun) fresh_from_ = residency_.untouched() + width;
  if (status == Status::out_of_memory && holes_.at_least(size) == nullptr && top_ + size > end_offset())
    return Status::not_supported;
  return status;
}

void Arena::consider_price(Block* hole, Bytes offset, Bytes size, Place* best) const {
  const PageTable::Price price = residency_.price(page_of(offset), page_of(offset + size - 1));
  if (price.possible && price.cost < best->score) *best = {hole, offset, price.cost, false};
}

// Of ready pages, too few for the block: to complete one makes room that smaller blocks will find for nothing.
void Arena::collect_runs(Bytes size) {
  runs_.clear();
  const auto collect = [&](Block* hole) {
    visit_ready(hole, [&](Bytes begin, Bytes end) {
      if (end - begin < size && end - begin >= size / 8) runs_.push_back({hole, begin, end});
      return true;
    });
  };
  int left = kReadyHoles;
  for (Block* hole = holes_.at_least(size); hole != nullptr && left-- > 0; hole = hole->larger) collect(hole);
  collect(nullptr);
}

Arena::Place Arena::priced_place(Bytes size) {
  Place best;
  int left = candidates_;
  for (Block* hole = holes_.at_least(size); hole != nullptr && left-- > 0; hole = hole->larger) {
    consider_price(hole, hole->offset, size, &best);
    if (hole->size != size) consider_price(hole, hole->end() - size, size, &best);
  }
  collect_runs(size);
  const auto longer = [](const Run& a, const Run& b) { return a.end - a.begin > b.end - b.begin; };
  const std::size_t runs = std::min(runs_.size(), kRuns);
  std::partial_sort(runs_.begin(), runs_.begin() + static_cast<std::ptrdiff_t>(runs), runs_.end(), longer);
  for (std::size_t i = 0; i < runs; ++i) {
    const Run& run = runs_[i];
    if (run.begin + size <= high_of(run.hole)) consider_price(run.hole, run.begin, size, &best);
    if (run.end >= low_of(run.hole) + size) consider_price(run.hole, run.end - size, size, &best);
  }
  if (top_ + size > end_offset()) return best;
  consider_price(nullptr, top_, size, &best);
  // Fresh pages, with and without room before them for memory that is live in part.
  const PageIndex fresh = std::max({residency_.untouched(), fresh_from_, page_of(round_up(top_, kPageBytes))});
  for (const PageIndex lead : {PageIndex{0}, PageIndex{residency_.widest_partial()}}) {
    const Bytes offset = (Bytes{fresh} + lead) * kPageBytes;
    if (offset + size > end_offset()) break;
    const double before = best.score;
    consider_price(nullptr, offset, size, &best);
    if (best.score < before) best.fresh = true;
  }
  return best;
}

// --- at a given place: checkpoint.h --------------------------------------------------------------------------------

Status Arena::allocate_at(Bytes offset, Bytes size, Bytes requested) {
  Block* hole = nullptr;
  if (offset < top_) {
    hole = covering(offset);
    if (hole->live() || hole->end() < offset + size) return Status::failed;
  }
  const auto first = static_cast<PageIndex>(offset / kPageBytes);
  const auto last = static_cast<PageIndex>((offset + size - 1) / kPageBytes);
  if (!residency_.cost(first, last).possible) return Status::failed;
  const Status status = residency_.acquire(first, last);
  if (status != Status::ok) return status;
  carve(hole, offset, size)->requested = requested;
  ++live_blocks_;
  return Status::ok;
}

}  // namespace poolalloc
