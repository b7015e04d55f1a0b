#include "core/page_supply.h"

#include <mutex>

namespace poolalloc {

Status PageSupply::take(PhysicalHandle* page) {
  {
    std::lock_guard guard(lock_);
    if (!spare_.empty()) {
      *page = spare_.back();
      spare_.pop_back();
      return Status::ok;
    }
    if (static_cast<Bytes>(reserved_.current) + kPageBytes > limit_) return Status::out_of_memory;
    reserved_.current += kPageBytes;  // claimed before the call, so that two threads cannot pass the limit together
  }
  const Status status = driver_.create(device_, kPageBytes, page);
  std::lock_guard guard(lock_);
  reserved_.current -= kPageBytes;
  if (status == Status::ok) {
    reserved_.add(kPageBytes);
    ++created_;
  }
  return status;
}

void PageSupply::give(PhysicalHandle page) {
  std::lock_guard guard(lock_);
  spare_.push_back(page);
}

Bytes PageSupply::destroy_spare() {
  std::vector<PhysicalHandle> pages;
  {
    std::lock_guard guard(lock_);
    pages.swap(spare_);
  }
  for (PhysicalHandle page : pages) driver_.destroy(device_, page);
  const Bytes bytes = pages.size() * kPageBytes;
  std::lock_guard guard(lock_);
  reserved_.subtract(bytes);
  destroyed_ += pages.size();
  return bytes;
}

void PageSupply::set_limit(Bytes bytes) {
  std::lock_guard guard(lock_);
  limit_ = bytes;
}

Bytes PageSupply::limit() const {
  std::lock_guard guard(lock_);
  return limit_;
}

Bytes PageSupply::spare_bytes() const {
  std::lock_guard guard(lock_);
  return spare_.size() * kPageBytes;
}

Counter PageSupply::reserved() const {
  std::lock_guard guard(lock_);
  return reserved_;
}

std::uint64_t PageSupply::created() const {
  std::lock_guard guard(lock_);
  return created_;
}

std::uint64_t PageSupply::destroyed() const {
  std::lock_guard guard(lock_);
  return destroyed_;
}

void PageSupply::reset_peak() {
  std::lock_guard guard(lock_);
  reserved_.reset_peak();
}

}  // namespace poolalloc
