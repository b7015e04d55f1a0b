#include "core/base/caretaker.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/quiet_thread.h"

namespace poolalloc {

struct Caretaker::Thread {
  Thread(std::chrono::nanoseconds period, std::function<void()> work) : period(period), work(std::move(work)) {
    thread = quiet_thread([this] { run(); });
  }
  void run() {
    pthread_setname_np(pthread_self(), "poolalloc");
    std::unique_lock lock(mutex);
    while (!ending) {
      woken = false;
      lock.unlock();
      work();
      rounds.fetch_add(1, std::memory_order_release);
      lock.lock();
      changed.wait_for(lock, period, [this] { return ending || woken; });
    }
  }
  bool here() const { return process == getpid(); }
  void end() {
    {
      const std::lock_guard guard(mutex);
      ending = true;
    }
    changed.notify_one();
    if (thread.joinable()) thread.join();
  }

  const pid_t process = getpid();
  const std::chrono::nanoseconds period;
  const std::function<void()> work;
  std::mutex mutex;
  std::condition_variable changed;
  bool ending = false, woken = false;
  std::atomic<std::uint64_t> rounds{0};
  std::thread thread;
};

namespace {

// Of allocators that are never destroyed: before the driver's own end, which is registered earlier, they must be still.
struct Everyone {
  std::mutex mutex;
  std::vector<std::pair<const void*, std::function<void()>>> ends;
};

Everyone& everyone() {
  static auto* const all = [] {
    std::atexit([] {
      std::vector<std::pair<const void*, std::function<void()>>> ends;
      {
        const std::lock_guard guard(everyone().mutex);
        ends.swap(everyone().ends);
      }
      for (const auto& [caretaker, end] : ends) end();
    });
    return new Everyone;
  }();
  return *all;
}

}  // namespace

Caretaker::Caretaker(std::chrono::nanoseconds period, std::function<void()> work)
    : thread_(std::make_unique<Thread>(period, std::move(work))) {
  const std::lock_guard guard(everyone().mutex);
  everyone().ends.emplace_back(this, [thread = thread_.get()] {
    if (thread->here()) thread->end();
  });
}

Caretaker::~Caretaker() {
  if (!thread_->here()) {
    [[maybe_unused]] const Thread* parents = thread_.release();  // its lock and its thread belong to the parent
    return;
  }
  {
    const std::lock_guard guard(everyone().mutex);
    std::erase_if(everyone().ends, [this](const auto& each) { return each.first == this; });
  }
  thread_->end();
}

bool Caretaker::here() const { return thread_->here(); }

std::uint64_t Caretaker::rounds() const { return thread_->rounds.load(std::memory_order_acquire); }

void Caretaker::wake() {
  if (!thread_->here()) return;
  {
    const std::lock_guard guard(thread_->mutex);
    thread_->woken = true;
  }
  thread_->changed.notify_one();
}

}  // namespace poolalloc
