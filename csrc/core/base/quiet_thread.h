// Threads of poolalloc's own: they take no signals, which are for the program's threads.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

namespace poolalloc {

// Throws std::system_error where the system gives no thread.
template <typename Work>
std::thread quiet_thread(Work work) {
  struct Signals {
    Signals() {
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &before);
    }
    ~Signals() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
    sigset_t before;
  } held_back;
  return std::thread(std::move(work));  // inherits what is held back
}

}  // namespace poolalloc
