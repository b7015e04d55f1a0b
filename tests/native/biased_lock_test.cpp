// BiasedLock: mutual exclusion while ownership comes, is taken away and goes from thread to thread.
#include "core/base/biased_lock.h"

#include <doctest/doctest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

using namespace poolalloc;

namespace {

// What the lock guards: two words that differ only while a thread is between them.
struct Guarded {
  BiasedLock lock{[this] { return first; }};
  std::uint64_t first = 0, second = 0;
  std::atomic<std::uint64_t> torn{0};

  void turn() {
    const BiasedLock::Guard guard(lock);
    if (first != second) ++torn;
    ++first;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    ++second;
  }
};

}  // namespace

TEST_CASE("one thread takes it any number of times") {
  Guarded guarded;
  constexpr std::uint64_t kTurns = 10 * BiasedLock::kFirstNeeded;
  for (std::uint64_t i = 0; i < kTurns; ++i) guarded.turn();
  CHECK((guarded.first == kTurns && guarded.second == kTurns && guarded.torn == 0));
}

// More threads than may ever be owners, each in runs long enough to become one.
TEST_CASE("threads exclude each other whoever owns it") {
  constexpr int kThreads = 6, kRuns = 60;
  Guarded guarded;
  std::atomic<std::uint64_t> expected{0};
  std::vector<std::thread> threads;
  for (int index = 0; index < kThreads; ++index)
    threads.emplace_back([&guarded, &expected, index] {
      std::mt19937 random(static_cast<unsigned>(index));
      for (int run = 0; run < kRuns; ++run) {
        const std::uint64_t turns = 1 + random() % (8 * BiasedLock::kFirstNeeded);
        for (std::uint64_t i = 0; i < turns; ++i) guarded.turn();
        expected += turns;
        if (random() % 4 == 0) std::this_thread::yield();
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(guarded.torn == 0);
  CHECK((guarded.first == expected && guarded.second == expected));
}

// Many locks, each with its first owner inside again and again when the other one comes: the one moment at which both
// could think that they are alone.
TEST_CASE("who comes while the owner is inside waits") {
  constexpr std::uint64_t kLocks = 200;
  std::vector<Guarded> locks(kLocks);
  std::atomic<std::uint64_t> owned{0}, done{0};
  std::vector<std::uint64_t> turns(kLocks);
  std::thread owner([&] {
    for (std::uint64_t i = 0; i < kLocks; ++i)
      for (; done.load(std::memory_order_relaxed) <= i; ++turns[i]) {
        locks[i].turn();
        if (turns[i] == 2 * BiasedLock::kFirstNeeded) owned.store(i + 1, std::memory_order_relaxed);
      }
  });
  for (std::uint64_t i = 0; i < kLocks; ++i) {
    while (owned.load(std::memory_order_relaxed) <= i) std::this_thread::yield();
    locks[i].turn();
    done.store(i + 1, std::memory_order_relaxed);
  }
  owner.join();
  for (std::uint64_t i = 0; i < kLocks; ++i)
    CHECK((locks[i].torn == 0 && locks[i].first == turns[i] + 1 && locks[i].second == turns[i] + 1));
}

TEST_CASE("a thread that comes after a dead owner may use it") {
  Guarded guarded;
  for (int i = 0; i < 20; ++i)
    std::thread([&guarded] {
      for (std::uint64_t turn = 0; turn < 3 * BiasedLock::kFirstNeeded; ++turn) guarded.turn();
    }).join();
  CHECK((guarded.torn == 0 && guarded.first == 20 * 3 * BiasedLock::kFirstNeeded));
}

namespace {

void take(Guarded& guarded, std::uint64_t turns) {
  std::thread([&] {
    for (std::uint64_t turn = 0; turn < turns; ++turn) guarded.turn();
  }).join();
}

}  // namespace

// Statistics that another thread reads now and then must not cost a heap of one thread its owner for good.
TEST_CASE("an ownership that was worth its end comes back as soon as the first one") {
  Guarded guarded;
  guarded.turn();
  if (!BiasedLock::can_be_owned()) return;  // a kernel without membarrier
  for (int visit = 0; visit < 3; ++visit) {
    for (std::uint64_t turn = 0; turn < 2 * (BiasedLock::kFirstNeeded + BiasedLock::kWorthIts); ++turn) guarded.turn();
    CHECK(guarded.lock.is_owned());
    take(guarded, 1);
    CHECK(!guarded.lock.is_owned());
  }
}

// Forward and backward passes alternate: each end of an ownership costs both of them more than the ownership gave.
TEST_CASE("threads that alternate before an ownership pays soon have a plain lock") {
  Guarded guarded;
  if (!BiasedLock::can_be_owned()) return;
  const auto pass = [&] {
    for (std::uint64_t turn = 0; turn < 2 * BiasedLock::kFirstNeeded; ++turn) guarded.turn();
    const bool owned = guarded.lock.is_owned();
    take(guarded, 1);
    return owned;
  };
  CHECK(pass());
  int owned = 0;
  for (int step = 0; step < 20; ++step) owned += pass();
  CHECK(owned == 0);
}
