// Something that is on or off as conditions say which other threads change at the same time. The look at the conditions
// and what follows from it are one step: else a thread that looked earlier could act later, and undo what another has
// just switched on.
#pragma once

#include <mutex>

namespace poolalloc::bridge {

class Decision {
 public:
  // To be called after every change of a condition. Both are called under a lock of its own, the outermost.
  template <typename Wanted, typename Act>
  void decide(Wanted wanted, Act act) {
    const std::lock_guard guard(mutex_);
    act(wanted());
  }

 private:
  std::mutex mutex_;
};

}  // namespace poolalloc::bridge
