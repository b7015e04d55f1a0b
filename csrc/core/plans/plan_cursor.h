// Which request of a plan comes next: follows a program through its plan, notices when it does something else, and
// finds the place again.
//
// A request is expected, or one of the next few is (those between were left out), or none (it is one too many, and the
// same is still expected). Each of the latter two raises doubts, each request that was expected lessens them, and with
// too many the program is *lost*; at the beginning, two are too many. Then the last sizes asked for are compared with
// all places of a period at which just these come, and only there. Where the program had been with the plan for a
// cycle, that is enough to follow it again; else it *watches* for a cycle first, so that a plan which does not fit
// places next to nothing.
//
// It knows sizes and order, nothing of memory: that a planned place is free is for planned_blocks.h to see.
// Guarded by the heap's lock.
#pragma once

#include <array>
#include <vector>

#include "core/plans/plan.h"

namespace poolalloc {

class PlanCursor {
 public:
  explicit PlanCursor(const StreamPlan& plan);

  // Where the plan puts a request of this size, or kNowhere. Moves only with accept(), which says that the request was
  // served, wherever that was: one that fails will be asked for again.
  Bytes next(Bytes size) {
    if (state_ == State::follows && plan_.requests[at_].size == size) [[likely]] {
      found_ = at_;
      return plan_.requests[at_].offset;
    }
    return look_for(size);
  }
  void accept(Bytes size) {
    if (state_ == State::follows && found_ == at_) [[likely]] {
      advance();
    } else {
      accept_deviation(size);
    }
  }

  // Every request so far was the one that the plan expected: what it has placed will be needed again.
  bool faithful() const { return faithful_; }
  // How often it followed again after it had lost its place.
  std::uint64_t resynchronized() const { return resynchronized_; }
  Bytes metadata_bytes() const { return sizeof(*this) + places_.capacity() * sizeof(Place); }
  void validate() const;

 private:
  enum class State : std::uint8_t { follows, watches, lost };
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  static constexpr std::uint32_t kAhead = 8;   // requests that may have been left out
  static constexpr std::uint32_t kDoubt = 16;  // that something else raises: so many requests as expected lessen it
  static constexpr std::uint32_t kMostDoubts = 256;  // before it is lost
  static constexpr std::uint32_t kContext = 16;      // sizes by which a place is known
  // A place of the first period whose last kContext sizes come nowhere else in it.
  struct Place {
    std::uint64_t hash;
    std::uint32_t last;  // the request with the last of them
  };

  std::uint32_t after(std::uint32_t request) const {
    return request + 1 < plan_.requests.size() ? request + 1 : plan_.first;
  }
  std::uint32_t cycle() const { return static_cast<std::uint32_t>(plan_.requests.size()) - plan_.first; }
  void advance() {
    at_ = after(found_);
    if (doubts_ != 0) --doubts_;
    ++matched_;
  }
  Bytes look_for(Bytes size);
  void accept_deviation(Bytes size);
  void deviate();
  void lose();
  void find_place(Bytes size);
  template <typename SizeAt>
  static std::uint64_t hash_of(std::uint32_t count, SizeAt size_at);
  Bytes context(std::uint32_t last, std::uint32_t back) const;

  const StreamPlan& plan_;
  const std::uint32_t context_;  // kContext, or the period if that is less
  std::uint32_t at_ = 0;         // expected
  std::uint32_t found_ = kNone;  // what next() took the request for
  State state_ = State::follows;
  bool faithful_ = true;
  bool believed_ = false;  // it had been followed for a cycle before it was lost
  std::uint32_t doubts_ = kMostDoubts - kDoubt;
  std::uint64_t matched_ = 0;   // since the last deviation
  std::uint64_t followed_ = 0;  // before it, since the place was last found
  std::uint64_t resynchronized_ = 0;
  std::array<Bytes, kContext> last_{};  // sizes asked for while lost, a ring
  std::uint32_t asked_ = 0;             // while lost
  std::vector<Place> places_;           // by hash
};

}  // namespace poolalloc
