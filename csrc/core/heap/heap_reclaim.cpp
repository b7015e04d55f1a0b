// How idle frames leave a heap for the page supply, and so for other streams or the device, and how they come back from
// a loan: only behind work that has completed. Called by threads that serve another stream or none, so no driver call
// is made under the heap's lock. Not for choosing whose frames go: ladder.h and device_heap.h.
#include <algorithm>
#include <iterator>

#include "core/heap/heap.h"

namespace poolalloc {

bool Heap::has_completed(const MayAsk& token, EventHandle event, int questions) const {
  for (int i = 0; i < questions; ++i) {
    const Status status = shared_.driver.query_event(token, shared_.device, event);
    if (status != Status::not_ready) return status == Status::ok;
  }
  return false;
}

// Work before the mark is done. Somebody else may have seen that first.
void Heap::reached(const Mark& mark) {
  pages_.set_completed(mark.tick);
  if (marks_.empty() || marks_.front() != mark) return;
  uses_.give_event(shared_.device, mark.event);
  marks_.erase(marks_.begin());
}

// Asks the stream for the marks on its way, and leaves one more behind what has been freed since. Events are asked
// without the lock. One may be used anew meanwhile, but only after the stream had reached its mark: the answer holds.
void Heap::learn_progress(int questions) {
  const auto token = shared_.gate.may_ask();
  if (!token) return;
  for (;;) {
    Mark mark;
    {
      const Guard guard(*this);
      if (marks_.empty()) break;
      mark = marks_.front();
    }
    if (!has_completed(*token, mark.event, questions)) break;
    const Guard guard(*this);
    reached(mark);
  }
  Mark mark;
  {
    const Guard guard(*this);
    marks_wanted_ = kMarksWanted;
    mark.tick = pages_.tick();
    if (last_mark() == mark.tick) return;
    mark.event = uses_.take_event(shared_.device);
  }
  if (mark.event == 0 && shared_.driver.create_event(shared_.device, &mark.event) != Status::ok) return;
  const bool recorded = shared_.gate.record_behind(home(), mark.event) == Status::ok;
  const bool done = recorded && has_completed(*token, mark.event, questions);
  const Guard guard(*this);
  if (done) pages_.set_completed(mark.tick);
  // One that the stream's own thread has left meanwhile is as good or better.
  if (recorded && !done && mark.tick > last_mark())
    add_mark(mark);
  else
    uses_.give_event(shared_.device, mark.event);
}

// During a capture nothing is unmapped, but memory goes on loan as ever.
Bytes Heap::reclaim_completed(std::uint32_t at_most_frames, int questions, std::optional<Tick> idle_since) noexcept {
  const auto token = shared_.gate.no_capture();
  if (!token && !lends()) return 0;
  {
    const Guard guard(*this);
    if (asleep_ || pages_.idle_frames() == 0) return 0;
  }
  learn_progress(questions);
  PageTable::Detached leaving;
  Bytes lent = 0;
  {
    const Guard guard(*this);
    const Tick tick = std::min(pages_.completed(), idle_since.value_or(pages_.completed()));
    if (lends())
      lent = pages_.lend(tick, at_most_frames) * kPageBytes;
    else
      pages_.detach_idle_since(tick, at_most_frames, &leaving);
    if (token) pages_.detach_left_behind(&leaving);
    if (lent != 0) loans_moved();
  }
  return token ? lent + hand_over(*token, leaving) : lent;
}

Bytes Heap::lend(const std::vector<PhysicalHandle>& wanted) noexcept {
  Bytes lent = 0;
  bool running = false;
  const auto lend_what_is_done = [&] {
    const Guard guard(*this);
    running = false;
    lent += pages_.lend_these(wanted, &running) * kPageBytes;
    if (lent != 0) loans_moved();
  };
  lend_what_is_done();
  if (!running) return lent;
  learn_progress(1);
  lend_what_is_done();
  return lent;
}

void Heap::take_back(const std::vector<PhysicalHandle>& wanted) noexcept {
  const Guard guard(*this);
  pages_.take_back(wanted);
  loans_moved();
}

void Heap::loans_moved() {
  note_pages_if_changed();
  if ((attention_ & kPublishes) != 0) publish_all();
}

void Heap::end_loans(std::vector<PhysicalHandle>* pages) noexcept {
  const auto token = shared_.gate.no_capture();
  PageTable::Detached leaving;
  {
    const Guard guard(*this);
    if (!token) {
      std::erase_if(*pages, [this](PhysicalHandle page) { return pages_.lent(page); });
      return;
    }
    pages_.detach_lent(*pages, &leaving);
  }
  pages_.unmap_detached(&leaving);
  for (const PageTable::Leaving& each : leaving)
    if (!each.unmapped) std::erase(*pages, each.handle);
  const Guard guard(*this);
  pages_.return_detached(leaving);
  loans_moved();
}

Bytes Heap::reclaim_aged(std::uint32_t at_most_frames, std::uint64_t now, std::uint64_t age) noexcept {
  Tick tick = 0;
  {
    const Guard guard(*this);
    looks_.push_back({now, pages_.tick(), exact_ != nullptr ? exact_->bins.last_number() : 0});
    const auto young =
        std::find_if(looks_.begin(), looks_.end(), [&](const Look& look) { return look.time + age > now; });
    if (young == looks_.begin()) return 0;
    tick = std::prev(young)->tick;
    release_kept_locked(~Bytes{0}, ExactBins::Which::surplus, std::prev(young)->kept);
    looks_.erase(looks_.begin(), std::prev(young));
  }
  return reclaim_completed(at_most_frames, kQuestions, tick);
}

// Nothing may be unmapped: idle memory goes on loan, behind the stream's work until now if this thread may wait for it.
Bytes Heap::lend_waiting(std::uint32_t at_most_frames) {
  const auto token = shared_.gate.may_ask();
  if (!token || !lends()) return 0;
  Tick tick = 0;
  EventHandle event = 0;
  {
    const Guard guard(*this);
    if (pages_.idle_frames() == 0) return 0;
    tick = pages_.tick();
    event = uses_.take_event(shared_.device);
  }
  Driver& driver = shared_.driver;
  const bool done = (event != 0 || driver.create_event(shared_.device, &event) == Status::ok) &&
                    shared_.gate.record_behind(home(), event) == Status::ok &&
                    driver.synchronize_event(*token, shared_.device, event) == Status::ok;
  waits_.fetch_add(1, std::memory_order_relaxed);
  const Guard guard(*this);
  uses_.give_event(shared_.device, event);
  if (!done) return 0;
  pages_.set_completed(tick);
  const Bytes lent = pages_.lend(tick, at_most_frames) * kPageBytes;
  if (lent != 0) loans_moved();
  return lent;
}

Bytes Heap::reclaim_waiting(std::uint32_t at_most_frames) noexcept {
  const auto token = shared_.gate.no_capture();
  if (!token) return lend_waiting(at_most_frames);
  PageTable::Detached left_behind, leaving;
  EventHandle event = 0;
  Tick tick = 0;
  {
    const Guard guard(*this);
    if (asleep_) return 0;
    tick = pages_.tick();
    pages_.detach_left_behind(&left_behind);
    pages_.detach_idle(at_most_frames, &leaving);
    pages_.detach_blocked(&leaving);
    if (!leaving.empty()) event = uses_.take_event(shared_.device);
  }
  Bytes bytes = hand_over(*token, left_behind);
  if (leaving.empty()) return bytes;
  waits_.fetch_add(1, std::memory_order_relaxed);
  // The stream may be gone, but not its work: where there is no event, all of the device is waited for, if nothing is
  // captured there that nobody announced.
  Driver& driver = shared_.driver;
  const auto wait_for_device = [&] {
    const auto alone = shared_.gate.no_capture(shared_.device);
    return alone && driver.synchronize_device(*alone, shared_.device) == Status::ok;
  };
  const bool recorded = (event != 0 || driver.create_event(shared_.device, &event) == Status::ok) &&
                        shared_.gate.record_behind(home(), event) == Status::ok;
  const bool done =
      (recorded && driver.synchronize_event(*token, shared_.device, event) == Status::ok) || wait_for_device();
  {
    const Guard guard(*this);
    uses_.give_event(shared_.device, event);
    if (!done) {
      pages_.postpone(leaving);
      return bytes;
    }
    pages_.set_completed(tick);
  }
  return bytes + hand_over(*token, leaving);
}

void Heap::shed() noexcept {
  const Guard guard(*this);
  pages_.shed();
  slabs_.shed();
  arena_.shed();
}

Bytes Heap::live_bytes() const {
  const Guard guard(*this);
  return asleep_ ? 0 : static_cast<Bytes>(counts_.live.current());
}

void Heap::let_calls_finish() const { const BiasedLock::Guard guard(lock_); }

// Work that could touch them has completed.
Bytes Heap::hand_over(const NoCapture&, PageTable::Detached& leaving) {
  if (leaving.empty()) return 0;
  pages_.unmap_detached(&leaving);
  const Guard guard(*this);
  const Bytes bytes = pages_.return_detached(leaving) * kPageBytes;
  loans_moved();
  if (segments_ != nullptr) close_segments(leaving);
  return bytes;
}

}  // namespace poolalloc
