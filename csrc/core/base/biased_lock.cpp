#include "core/base/biased_lock.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace poolalloc {

namespace {

constexpr std::uint64_t kMostNeeded = 1u << 20;  // then what an end costs does not show
constexpr std::uint64_t kNever = ~std::uint64_t{0};

bool membarrier(int command) { return syscall(SYS_membarrier, command, 0, 0) == 0; }

}  // namespace

bool BiasedLock::can_be_owned() {
  static const bool registered = membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
  return registered;
}

BiasedLock::BiasedLock(Uses uses) : uses_(std::move(uses)), needed_(can_be_owned() ? kFirstNeeded : kNever) {}

void BiasedLock::change_hands(std::uintptr_t self) {
  if (is_owned()) end_ownership();
  if (self != last_) {
    last_ = self;
    in_a_row_ = 1;
  } else if (in_a_row_ >= needed_) {
    begin_ownership(self);
  }
}

void BiasedLock::begin_ownership(std::uintptr_t self) {
  for (std::uintptr_t index = 0; index < kOwners; ++index) {
    if (owners_[index] != self && owners_[index] != 0) continue;
    owners_[index] = self;
    uses_before_ = uses_();
    owner_.store(self | index, std::memory_order_relaxed);  // from the next turn on: this one holds shared_
    return;
  }
  in_a_row_ = 0;
}

void BiasedLock::end_ownership() {
  const std::atomic<bool>& inside = inside_[owner_.load(std::memory_order_relaxed) % kOwners];
  owner_.store(0, std::memory_order_relaxed);
  // A filter for system calls may have come since: then time must do, of which a store needs far less.
  if (!membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  wait_until([&inside] { return !inside.load(std::memory_order_acquire); });
  needed_ = uses_() - uses_before_ >= kWorthIts ? kFirstNeeded : std::min(4 * needed_, kMostNeeded);
}

}  // namespace poolalloc
