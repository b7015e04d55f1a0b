#include "core/plans/plan_cursor.h"

#include <algorithm>

#include "core/base/check.h"

namespace poolalloc {

// Of the sizes from the latest back.
template <typename SizeAt>
std::uint64_t PlanCursor::hash_of(std::uint32_t count, SizeAt size_at) {
  std::uint64_t hash = 0;
  for (std::uint32_t back = 0; back < count; ++back) hash = (hash ^ size_at(back)) * 0x9e3779b97f4a7c15;
  return hash;
}

// The size asked for `back` requests before the request `last` of the first period, which is taken to go round.
Bytes PlanCursor::context(std::uint32_t last, std::uint32_t back) const {
  const std::uint32_t place = last - plan_.first;
  return plan_.requests[plan_.first + (place + plan_.period - back) % plan_.period].size;
}

PlanCursor::PlanCursor(const StreamPlan& plan) : plan_(plan), context_(std::min(kContext, plan.period)) {
  for (std::uint32_t last = plan.first; last < plan.first + plan.period; ++last)
    places_.push_back({hash_of(context_, [&](std::uint32_t back) { return context(last, back); }), last});
  const auto less = [](const Place& a, const Place& b) { return a.hash < b.hash; };
  std::sort(places_.begin(), places_.end(), less);
  // Only what leaves no doubt.
  std::vector<Place> unique;
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const bool before = i > 0 && places_[i - 1].hash == places_[i].hash;
    const bool after = i + 1 < places_.size() && places_[i + 1].hash == places_[i].hash;
    if (!before && !after) unique.push_back(places_[i]);
  }
  unique.shrink_to_fit();
  places_.swap(unique);
}

Bytes PlanCursor::look_for(Bytes size) {
  found_ = kNone;
  if (state_ == State::lost) return PlannedRequest::kNowhere;
  std::uint32_t request = at_;
  for (std::uint32_t left = kAhead; left > 0; --left, request = after(request)) {
    if (plan_.requests[request].size != size) continue;
    found_ = request;
    break;
  }
  return found_ != kNone && state_ == State::follows ? plan_.requests[found_].offset : PlannedRequest::kNowhere;
}

// Something else than what was expected while it followed, or anything while it did not.
void PlanCursor::accept_deviation(Bytes size) {
  if (state_ == State::lost) return find_place(size);
  if (found_ != at_) {
    deviate();
    if (doubts_ > kMostDoubts) return lose();
  }
  if (found_ == kNone) return;
  advance();
  if (state_ == State::watches && matched_ >= cycle()) {
    state_ = State::follows;
    ++resynchronized_;
  }
}

void PlanCursor::deviate() {
  faithful_ = false;
  doubts_ += kDoubt;
  followed_ += matched_;
  matched_ = 0;
}

void PlanCursor::lose() {
  believed_ = state_ == State::follows && followed_ >= cycle();
  state_ = State::lost;
  asked_ = 0;
}

void PlanCursor::find_place(Bytes size) {
  last_[asked_++ % kContext] = size;
  if (asked_ < context_) return;
  const auto asked = [&](std::uint32_t back) { return last_[(asked_ - 1 - back) % kContext]; };
  const std::uint64_t hash = hash_of(context_, asked);
  const auto place = std::lower_bound(places_.begin(), places_.end(), hash,
                                      [](const Place& a, std::uint64_t b) { return a.hash < b; });
  if (place == places_.end() || place->hash != hash) return;
  for (std::uint32_t back = 0; back < context_; ++back)
    if (asked(back) != context(place->last, back)) return;
  state_ = believed_ ? State::follows : State::watches;
  if (believed_) ++resynchronized_;
  at_ = after(place->last);
  doubts_ = believed_ ? 0 : kMostDoubts - kDoubt;
  matched_ = followed_ = 0;
}

void PlanCursor::validate() const {
  POOLALLOC_ENSURE(at_ < plan_.requests.size(), "the plan has the request that is expected");
  POOLALLOC_ENSURE(doubts_ <= kMostDoubts || state_ == State::lost, "too many other requests are noticed");
}

}  // namespace poolalloc
