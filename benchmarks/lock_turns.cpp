// Threads that take turns at one lock, as the forward and the backward pass of training do at a stream's heap: what
// taking and giving it back costs with a lock that has an owner (core/base/biased_lock.h) and with a plain one, by the
// length of a turn. Ratios of one run; g++ -O2 -std=c++20 -Icsrc benchmarks/lock_turns.cpp
// csrc/core/base/biased_lock.cpp -lpthread
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

#include "core/base/biased_lock.h"
#include "core/base/lock.h"

using namespace poolalloc;

namespace {

struct Biased {
  BiasedLock lock{[this] { return count; }};
  std::uint64_t count = 0;
  void enter() {
    const BiasedLock::Guard guard(lock);
    ++count;
  }
};

struct Plain {
  Lock lock;
  std::uint64_t count = 0;
  void enter() {
    const std::lock_guard<Lock> guard(lock);
    ++count;
  }
};

// Nanoseconds to enter and leave: the time inside turns alone, not that of passing the turn on.
template <typename Guarded>
double cost(int threads, std::uint64_t turn, std::uint64_t total) {
  Guarded guarded;
  std::atomic<std::uint64_t> whose{0};
  std::atomic<std::uint64_t> spent{0};
  const std::uint64_t turns = std::clamp<std::uint64_t>(total / turn, 4 * static_cast<std::uint64_t>(threads), 400);
  std::vector<std::thread> all;
  for (int own = 0; own < threads; ++own)
    all.emplace_back([&, own] {
      for (std::uint64_t i = static_cast<std::uint64_t>(own); i < turns; i += static_cast<std::uint64_t>(threads)) {
        while (whose.load(std::memory_order_acquire) != i) std::this_thread::yield();
        const auto start = std::chrono::steady_clock::now();
        for (std::uint64_t k = 0; k < turn; ++k) guarded.enter();
        const auto end = std::chrono::steady_clock::now();
        spent += static_cast<std::uint64_t>(std::chrono::nanoseconds(end - start).count());
        whose.store(i + 1, std::memory_order_release);
      }
    });
  for (std::thread& thread : all) thread.join();
  return static_cast<double>(spent) / static_cast<double>(turns * turn);
}

template <typename Guarded>
double median(int threads, std::uint64_t turn) {
  std::vector<double> costs;
  for (int round = 0; round < 5; ++round) costs.push_back(cost<Guarded>(threads, turn, 400'000));
  std::nth_element(costs.begin(), costs.begin() + 2, costs.end());
  return costs[2];
}

}  // namespace

int main() {
  std::printf("threads  calls a turn  owned ns  plain ns  ratio\n");
  for (const int threads : {1, 2})
    for (const std::uint64_t turn : {1, 100, 1'000, 10'000, 100'000}) {
      if (threads == 1 && turn != 100'000) continue;
      const double biased = median<Biased>(threads, turn), plain = median<Plain>(threads, turn);
      std::printf("%7d %13llu %9.1f %9.1f %6.2f\n", threads, static_cast<unsigned long long>(turn), biased, plain,
                  biased / plain);
      std::fflush(stdout);
    }
}
