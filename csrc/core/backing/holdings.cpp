#include "core/backing/holdings.h"

#include <mutex>

namespace poolalloc {

bool Holdings::claim(Bytes bytes) {
  std::lock_guard guard(lock_);
  if (static_cast<Bytes>(reserved_.current) + bytes > limit_) return false;
  reserved_.current += static_cast<std::int64_t>(bytes);
  return true;
}

void Holdings::settle(Bytes claimed, Bytes made) {
  std::lock_guard guard(lock_);
  reserved_.current -= static_cast<std::int64_t>(claimed);
  reserved_.add(made);
  created_ += made / kPageBytes;
}

void Holdings::count_destroyed(Bytes bytes) {
  std::lock_guard guard(lock_);
  reserved_.subtract(bytes);
  destroyed_ += bytes / kPageBytes;
}

void Holdings::move_spare(Bytes before, Bytes now) {
  if (before == now) return;
  std::lock_guard guard(lock_);
  const Bytes all_before = spare_;
  spare_ += now - before;
  if (observer_ == nullptr) return;
  if (Observer* observer = observer_->load(std::memory_order_acquire))
    observer->spare_changed(device_, all_before, spare_);
}

Bytes Holdings::spare() const {
  std::lock_guard guard(lock_);
  return spare_;
}

void Holdings::set_limit(Bytes bytes) {
  std::lock_guard guard(lock_);
  limit_ = bytes;
}

Bytes Holdings::limit() const {
  std::lock_guard guard(lock_);
  return limit_;
}

Counter Holdings::reserved() const {
  std::lock_guard guard(lock_);
  return reserved_;
}

Bytes Holdings::room() const {
  std::lock_guard guard(lock_);
  const Bytes most = limit_ - limit_ / 16, reserved = static_cast<Bytes>(reserved_.current);
  return most > reserved ? most - reserved : 0;
}

std::uint64_t Holdings::created() const {
  std::lock_guard guard(lock_);
  return created_;
}

std::uint64_t Holdings::destroyed() const {
  std::lock_guard guard(lock_);
  return destroyed_;
}

void Holdings::reset_peak() {
  std::lock_guard guard(lock_);
  reserved_.reset_peak();
}

}  // namespace poolalloc
