// Which pages share memory. The pages that one piece of physical memory is mapped at form a ring, each leading to the
// next lower one and the lowest to the highest, so that one comparison tells whether another page of a range below a
// page shares its memory. Not for which of them may use it: page_table.h.
#pragma once

#include "core/base/lazy_array.h"
#include "core/base/types.h"

namespace poolalloc {

class AliasRings {
 public:
  explicit AliasRings(PageIndex pages) : next_(pages) {}

  // A page that is in no ring is one of its own from now on, or of that of `other`.
  void start(PageIndex page) { next_[page] = page; }
  void join(PageIndex page, PageIndex other) {
    PageIndex before = other;
    while (!between(next_[before], page, before)) before = next_[before];
    next_[page] = next_[before];
    next_[before] = page;
  }
  void leave(PageIndex page) {
    PageIndex before = page;
    while (next_[before] != page) before = next_[before];
    next_[before] = next_[page];
  }

  // Of a page that is in a ring.
  PageIndex next(PageIndex page) const { return next_[page]; }
  bool alone(PageIndex page) const { return next_[page] == page; }
  // Whether one of first .. page - 1 is in its ring; then the highest such is next(page).
  bool repeats(PageIndex page, PageIndex first) const { return next_[page] - first < page - first; }
  // Whether that is so of any of first .. last; of pages that are in no ring it may say so, too.
  bool any_repeats(PageIndex first, PageIndex last) const {
    const PageIndex* const next = next_.data();
    PageIndex found = 0;
    for (PageIndex page = first; page <= last; ++page) found |= next[page] - first < page - first;
    return found != 0;
  }
  // visit(other) for each other page of its ring.
  template <typename Visit>
  void visit_others(PageIndex page, Visit visit) const {
    for (PageIndex other = next_[page]; other != page; other = next_[other]) visit(other);
  }
  // own(page, alone) for each of first .. last, and other(alias) for each other page of its ring.
  template <typename Own, typename Other>
  void visit_rings(PageIndex first, PageIndex last, Own own, Other other) const {
    const PageIndex* const next = next_.data();  // whatever the visits write
    for (PageIndex page = first; page <= last; ++page) {
      PageIndex alias = next[page];
      own(page, alias == page);
      for (; alias != page; alias = next[alias]) other(alias);
    }
  }

  // These pages are in no ring.
  void discard(PageIndex first, PageIndex end) { next_.discard(first, end); }

 private:
  // Whether `page` comes after `high` and before `low` on the way down and round.
  static bool between(PageIndex low, PageIndex page, PageIndex high) {
    return low < high ? low < page && page < high : page < high || page > low;
  }

  LazyArray<PageIndex> next_;
};

}  // namespace poolalloc
