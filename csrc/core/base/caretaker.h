// A thread that does some work now and then, or when it is woken: what need not keep a request waiting. Not for what
// the work is: Allocator::tend.
//
// It takes no signals, ends before the process does, and is forgotten in a child of fork(), which has no such thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

namespace poolalloc {

class Caretaker {
 public:
  Caretaker(std::chrono::nanoseconds period, std::function<void()> work);
  // Waits for the work under way.
  ~Caretaker();
  Caretaker(const Caretaker&) = delete;
  Caretaker& operator=(const Caretaker&) = delete;

  void wake();
  // Whether this process has the thread: not so in a child of fork(), where it may have left locks behind.
  bool here() const;
  // How often the work was done from beginning to end.
  std::uint64_t rounds() const;

 private:
  struct Thread;
  std::unique_ptr<Thread> thread_;
};

}  // namespace poolalloc
