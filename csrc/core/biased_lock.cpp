#include "core/biased_lock.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace poolalloc {

namespace {

constexpr std::uint32_t kMostNeeded = 1u << 16;  // then what an end costs does not show

bool membarrier(int command) { return syscall(SYS_membarrier, command, 0, 0) == 0; }

bool have_barriers() {
  static const bool registered = membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
  return registered;
}

}  // namespace

BiasedLock::BiasedLock() : may_be_owned_(have_barriers()) {}

void BiasedLock::enter_shared(std::uintptr_t self) {
  shared_.lock();
  if (const std::uintptr_t owner = owner_.load(std::memory_order_relaxed); owner != 0) end_ownership(owner);
  in_a_row_ = self == last_ ? in_a_row_ + 1 : 1;
  last_ = self;
  if (in_a_row_ < needed_ || !may_be_owned_) return;
  for (std::uintptr_t index = 0; index < kOwners; ++index) {
    if (owners_[index] != self && owners_[index] != 0) continue;
    owners_[index] = self;
    owned_since_ = std::chrono::steady_clock::now();
    owner_.store(self | index, std::memory_order_relaxed);  // from the next turn on: this one holds shared_
    return;
  }
  in_a_row_ = 0;
}

void BiasedLock::end_ownership(std::uintptr_t owner) {
  owner_.store(0, std::memory_order_relaxed);
  // A filter for system calls may have come since: then time must do, of which a store needs far less.
  if (!membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const std::atomic<bool>& inside = inside_[owner % kOwners];
  wait_until([&inside] { return !inside.load(std::memory_order_acquire); });
  if (std::chrono::steady_clock::now() - owned_since_ >= kWorthIts)
    needed_ = kFirstNeeded;
  else if (needed_ < kMostNeeded)
    needed_ *= 2;
}

}  // namespace poolalloc
