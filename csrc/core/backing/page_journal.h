// What one operation of a heap did to its pages, for the observer: told at the end of the operation, in runs of
// neighbours, without what was undone. Guarded by the heap's lock.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <vector>

#include "core/base/types.h"
#include "core/recording/observer.h"

namespace poolalloc {

class PageJournal {
 public:
  PageJournal(const std::atomic<Observer*>& observer, const HeapId& heap) : observer_(observer), heap_(heap) {}

  bool kept() const { return observer_.load(std::memory_order_relaxed) != nullptr; }
  void came(Address page) {
    if (kept()) [[unlikely]]
      came_.push_back(page);
  }
  void left(Address page) {
    if (kept()) [[unlikely]]
      left_.push_back(page);
  }
  void tell() {
    if (!came_.empty() || !left_.empty()) [[unlikely]]
      tell_runs();
  }

 private:
  using Pages = std::vector<Address>;

  [[gnu::noinline]] void tell_runs() {
    std::sort(came_.begin(), came_.end());
    std::sort(left_.begin(), left_.end());
    Pages gone, here;
    std::set_difference(left_.begin(), left_.end(), came_.begin(), came_.end(), std::back_inserter(gone));
    std::set_difference(came_.begin(), came_.end(), left_.begin(), left_.end(), std::back_inserter(here));
    came_.clear();
    left_.clear();
    Observer* const observer = observer_.load(std::memory_order_acquire);
    if (observer == nullptr) return;
    each_run(gone, [&](Address address, Bytes bytes) { observer->pages_left(heap_, address, bytes); });
    each_run(here, [&](Address address, Bytes bytes) { observer->pages_came(heap_, address, bytes); });
  }

  template <typename Tell>
  void each_run(const Pages& pages, Tell tell) const {
    for (std::size_t first = 0, end; first < pages.size(); first = end) {
      for (end = first + 1; end < pages.size() && pages[end] == pages[end - 1] + kPageBytes;) ++end;
      tell(pages[first], (end - first) * kPageBytes);
    }
  }

  const std::atomic<Observer*>& observer_;
  const HeapId heap_;
  Pages came_, left_;
};

}  // namespace poolalloc
