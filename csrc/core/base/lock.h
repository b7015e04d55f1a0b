// A small lock for short critical sections that are almost never contended: one atomic exchange to take, one store to
// give back. Not recursive, not fair. Waiters spin, then yield, then sleep up to 100 us, so a holder that is inside a
// driver call costs them no processor.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

namespace poolalloc {

// For conditions that are true soon.
template <typename Condition>
void wait_until(Condition condition) {
  for (int round = 0;; ++round) {
    for (int spin = 0; spin < 64; ++spin)
      if (condition()) return;
    if (round < 16)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(round < 100 ? round : 100));
  }
}

class Lock {
 public:
  void lock() {
    if (held_.exchange(true, std::memory_order_acquire)) [[unlikely]]
      wait();
  }
  void unlock() { held_.store(false, std::memory_order_release); }
  bool try_lock() { return !held_.exchange(true, std::memory_order_acquire); }

 private:
  [[gnu::noinline]] void wait() {
    wait_until([this] { return !held_.load(std::memory_order_relaxed) && try_lock(); });
  }

  std::atomic<bool> held_{false};
};

}  // namespace poolalloc
