// How a run of empty pages gets memory: which spans are mapped there, and which are made for it.
//
// A *span* is one physical handle of any number of pages. The driver maps it whole, and charges for the handle, hardly
// for its size. So a run is filled with few large pieces, and the outer ones may hang over into empty pages beside it:
//
//   the run          .  .  .  [ 10 empty pages needed     ]  .  .  .
//   pieces           [ a: idle tail of 4 ][ b: idle, 5 ][ c: new, 3  ]
//
// From left to right: the idle tail of a span that is live in part, spans that are wholly idle (the largest first), and
// at last a new span, a larger idle one, or the idle head of one that is live in part. The cheapest of all these is
// chosen, in microseconds of the driver, where every new page beyond the budget costs some more.
//
// Arithmetic only: no page changes here. residency.h does what a Fill says.
#pragma once

#include <cstdint>
#include <vector>

namespace poolalloc {

// What the driver takes for a handle of n pages, in microseconds: a price x (1 + slope (n - 1)).
struct DriverPrices {
  double create = 30;
  double map = 41.5;  // and access, which is charged by handle as well
  double unmap = 28;
  double slope = 0.03;

  double of(double price, std::uint32_t pages) const { return price * (1 + slope * (pages - 1)); }
};

// By which rules a heap grows.
struct SpanRules {
  DriverPrices prices;
  std::uint32_t largest = 1;          // no new span has more pages
  double page_price = 1e6;            // microseconds that a new page beyond the budget is worth
  std::uint32_t smallest_growth = 1;  // pages, where there is room beside the run
  std::uint32_t largest_growth = 1;
  double growth_part = 0;  // of what is held, between the two
  double budget_part = 0;  // of the peak of resident pages, may be held beyond it before growth costs more than time
};

// What there is to fill a run with.
struct SpanStock {
  static constexpr std::uint32_t kSpare = std::uint32_t{1} << 31;  // a bit of the index: in the supply, mapped nowhere

  struct Entry {
    std::uint32_t index;
    std::uint32_t pages;
    std::uint32_t head;  // idle pages at its start
    std::uint32_t tail;  // and at its end
  };
  std::vector<Entry> whole;    // idle: the largest first
  std::vector<Entry> partial;  // live in part, idle at an end

  void clear() {
    whole.clear();
    partial.clear();
  }
};

struct Fill {
  static constexpr std::uint32_t kNew = ~std::uint32_t{0};
  struct Piece {
    std::uint32_t index;  // of the stock, or kNew
    std::uint32_t pages;
  };
  bool possible = false;
  std::vector<Piece> pieces;  // by address
  std::uint32_t lead = 0;     // pages of the first that lie before the run
  std::uint32_t new_pages = 0;
  std::uint32_t slack = 0;  // of them, pages that nobody needs yet
  double microseconds = 0;
  double cost = 0;  // and what the new pages beyond the budget are worth
};

// A run of empty pages.
struct EmptyRun {
  std::uint32_t pages = 0;
  std::uint32_t room_before = 0;  // empty pages beside it
  std::uint32_t room_after = 0;
};

// How many pages may be made.
struct GrowthRoom {
  std::int64_t free = 0;                   // at the price of the driver alone
  std::uint64_t most = ~std::uint64_t{0};  // at all
  std::uint32_t chunk = 1;                 // growth is at least so much, where there is room for it
};

// excluded(index) tells which entries of the stock are taken.
template <typename Excluded>
class SpanFiller {
 public:
  SpanFiller(const SpanRules& rules, const SpanStock& stock, Excluded excluded)
      : rules_(rules), stock_(stock), excluded_(excluded) {}

  Fill fill(const EmptyRun& run, const GrowthRoom& growth);

 private:
  using Entry = SpanStock::Entry;
  enum class End { none, grown, larger, head, grown_and_head };
  // A way to fill the run: the tail of a span, the first `whole` idle spans that fit, and its end.
  struct Way {
    const Entry* tail = nullptr;
    std::size_t whole = 0;
    End end = End::none;
    const Entry* last = nullptr;
    std::uint32_t grown = 0, slack = 0;
    double microseconds = 0, cost = 1e300;
  };

  void look(const Entry* tail);
  void keep_sequence() {
    if (found_) best_sequence_.assign(sequence_.begin(), sequence_.begin() + static_cast<std::ptrdiff_t>(best_.whole));
    found_ = false;
  }
  void consider(Way way, double microseconds);
  void end_with_growth(Way way, std::uint32_t left, const Entry* head, double microseconds);
  double price_of_new(std::uint32_t pages) const;
  double map(const Entry& entry) const { return rules_.prices.of(rules_.prices.map, entry.pages); }
  bool taken(const Entry& entry) const { return excluded_(entry.index) || &entry == tail_; }
  const Entry* smallest_larger_than(std::uint32_t pages) const;

  const SpanRules& rules_;
  const SpanStock& stock_;
  Excluded excluded_;
  EmptyRun run_;
  GrowthRoom growth_;
  const Entry* tail_ = nullptr;
  std::vector<const Entry*> sequence_;  // the idle spans taken so far
  std::vector<const Entry*> best_sequence_;
  Way best_;
  bool found_ = false;  // the best way was found by this look
};

// --- the search --------------------------------------------------------------------------------------------------

template <typename Excluded>
Fill SpanFiller<Excluded>::fill(const EmptyRun& run, const GrowthRoom& growth) {
  run_ = run;
  growth_ = growth;
  best_ = Way{};
  look(nullptr);
  keep_sequence();
  const Entry* tail = nullptr;
  for (const Entry& entry : stock_.partial)
    if (entry.tail != 0 && entry.tail <= run.pages && entry.pages - entry.tail <= run.room_before &&
        (tail == nullptr || entry.tail > tail->tail) && !excluded_(entry.index))
      tail = &entry;
  if (tail != nullptr) {
    look(tail);
    keep_sequence();
  }

  Fill fill;
  if (best_.cost == 1e300) return fill;
  fill.possible = true;
  if (best_.tail != nullptr) {
    fill.pieces.push_back({best_.tail->index, best_.tail->pages});
    fill.lead = best_.tail->pages - best_.tail->tail;
  }
  for (const Entry* entry : best_sequence_) fill.pieces.push_back({entry->index, entry->pages});
  for (std::uint32_t left = best_.grown; left != 0;) {
    const std::uint32_t pages = left < rules_.largest ? left : rules_.largest;
    fill.pieces.push_back({Fill::kNew, pages});
    left -= pages;
  }
  if (best_.last != nullptr) fill.pieces.push_back({best_.last->index, best_.last->pages});
  fill.new_pages = best_.grown;
  fill.slack = best_.slack;
  fill.microseconds = best_.microseconds;
  fill.cost = best_.cost;
  return fill;
}

template <typename Excluded>
void SpanFiller<Excluded>::look(const Entry* tail) {
  Way way;
  way.tail = tail_ = tail;
  sequence_.clear();
  std::uint32_t left = run_.pages;
  double microseconds = 0;
  if (tail != nullptr) {
    left -= tail->tail;
    microseconds += map(*tail);
  }
  if (left == 0) return consider(way, microseconds);
  std::size_t next = 0;
  for (;;) {
    if (microseconds >= best_.cost) return;  // every way from here on costs more
    end_with_growth(way, left, nullptr, microseconds);
    const Entry *enough = nullptr, *most = nullptr;  // heads of spans that are live in part
    for (const Entry& entry : stock_.partial) {
      if (entry.head == 0) continue;
      if (entry.head >= left) {
        if (entry.pages - left <= run_.room_after && (enough == nullptr || entry.head < enough->head) && !taken(entry))
          enough = &entry;
      } else if (entry.pages - entry.head <= run_.room_after && (most == nullptr || entry.head > most->head) &&
                 !taken(entry)) {
        most = &entry;
      }
    }
    if (enough != nullptr) {
      way.end = End::head;
      way.last = enough;
      consider(way, microseconds + map(*enough));
    }
    if (most != nullptr) end_with_growth(way, left - most->head, most, microseconds + map(*most));
    if (const Entry* larger = smallest_larger_than(left);
        larger != nullptr && larger->pages - left <= run_.room_after) {
      way.end = End::larger;
      way.last = larger;
      consider(way, microseconds + map(*larger));
    }
    way.last = nullptr;
    while (next < stock_.whole.size() && (stock_.whole[next].pages > left || taken(stock_.whole[next]))) ++next;
    if (next == stock_.whole.size()) return;
    const Entry& entry = stock_.whole[next++];
    sequence_.push_back(&entry);
    left -= entry.pages;
    microseconds += map(entry);
    if (left == 0) {
      way.end = End::none;
      return consider(way, microseconds);
    }
  }
}

template <typename Excluded>
void SpanFiller<Excluded>::end_with_growth(Way way, std::uint32_t left, const Entry* head, double microseconds) {
  std::uint32_t grown = left;
  if (head == nullptr && left < growth_.chunk)
    grown = growth_.chunk < left + run_.room_after ? growth_.chunk : left + run_.room_after;
  if (grown > growth_.most) grown = left;
  if (grown > growth_.most) return;
  way.end = head != nullptr ? End::grown_and_head : End::grown;
  way.last = head;
  way.grown = grown;
  way.slack = grown - left;
  consider(way, microseconds + price_of_new(grown));
}

template <typename Excluded>
void SpanFiller<Excluded>::consider(Way way, double microseconds) {
  const std::int64_t free = growth_.free > 0 ? growth_.free : 0;
  const std::int64_t beyond = std::int64_t{way.grown} - way.slack - free;
  way.microseconds = microseconds;
  way.cost = microseconds + (beyond > 0 ? rules_.page_price * static_cast<double>(beyond) : 0);
  if (way.cost >= best_.cost) return;
  way.whole = sequence_.size();
  best_ = way;
  found_ = true;
}

template <typename Excluded>
double SpanFiller<Excluded>::price_of_new(std::uint32_t pages) const {
  const DriverPrices& prices = rules_.prices;
  const double each = prices.create + prices.map;
  const std::uint32_t full = pages / rules_.largest, rest = pages % rules_.largest;
  return full * prices.of(each, rules_.largest) + (rest != 0 ? prices.of(each, rest) : 0);
}

template <typename Excluded>
const SpanStock::Entry* SpanFiller<Excluded>::smallest_larger_than(std::uint32_t pages) const {
  std::size_t low = 0, high = stock_.whole.size();  // the largest first
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    if (stock_.whole[middle].pages > pages)
      low = middle + 1;
    else
      high = middle;
  }
  for (std::size_t i = low; i-- > 0;) {
    const Entry& entry = stock_.whole[i];
    bool used = taken(entry);
    for (const Entry* other : sequence_) used = used || other == &entry;
    if (!used) return &entry;
  }
  return nullptr;
}

}  // namespace poolalloc
