#include "core/supply.h"

#include <mutex>

namespace poolalloc {

void Supply::set_limit(Bytes bytes) {
  std::lock_guard guard(lock_);
  limit_ = bytes;
}

Bytes Supply::limit() const {
  std::lock_guard guard(lock_);
  return limit_;
}

Counter Supply::reserved() const {
  std::lock_guard guard(lock_);
  return reserved_;
}

std::uint64_t Supply::created() const {
  std::lock_guard guard(lock_);
  return created_;
}

std::uint64_t Supply::destroyed() const {
  std::lock_guard guard(lock_);
  return destroyed_;
}

void Supply::reset_peak() {
  std::lock_guard guard(lock_);
  reserved_.reset_peak();
}

}  // namespace poolalloc
