#include "core/page_supply.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace poolalloc {

Status PageSupply::take(std::size_t count, std::vector<PhysicalHandle>* pages) {
  std::vector<PhysicalHandle> taken;
  std::size_t missing = 0;
  Bytes spare_left = 0;
  {
    std::lock_guard guard(lock_);
    const std::size_t spare = std::min(count, spare_.size());
    missing = count - spare;
    if (missing != 0 && !claim(missing * kPageBytes)) return Status::out_of_memory;
    taken.assign(spare_.end() - static_cast<std::ptrdiff_t>(spare), spare_.end());
    spare_.resize(spare_.size() - spare);
    spare_left = spare_.size() * kPageBytes;
    tell_spare((spare_.size() + spare) * kPageBytes, spare_.size() * kPageBytes);
  }
  if (spare_left < watched_) wake_();
  Status status = Status::ok;
  std::size_t made = 0;
  for (; made < missing && status == Status::ok; made += status == Status::ok) {
    PhysicalHandle page = 0;
    status = driver_.create(device_, kPageBytes, &page);
    if (status == Status::ok) taken.push_back(page);
  }
  if (missing != 0) {
    std::lock_guard guard(lock_);
    settle(missing * kPageBytes, made * kPageBytes);
  }
  if (status == Status::ok) {
    pages->insert(pages->end(), taken.begin(), taken.end());
  } else {
    std::lock_guard guard(lock_);
    spare_.insert(spare_.end(), taken.begin(), taken.end());
    tell_spare((spare_.size() - taken.size()) * kPageBytes, spare_.size() * kPageBytes);
  }
  return status;
}

Status PageSupply::prepare(Bytes spare) {
  for (;;) {
    {
      std::lock_guard guard(lock_);
      if (spare_.size() * kPageBytes >= spare) return Status::ok;
      if (!claim(kPageBytes)) return Status::out_of_memory;
    }
    PhysicalHandle page = 0;
    const Status status = driver_.create(device_, kPageBytes, &page);
    std::lock_guard guard(lock_);
    settle(kPageBytes, status == Status::ok ? kPageBytes : 0);
    if (status != Status::ok) return status;
    spare_.push_back(page);
    tell_spare((spare_.size() - 1) * kPageBytes, spare_.size() * kPageBytes);
  }
}

void PageSupply::watch_spare(Bytes spare, std::function<void()> wake) {
  watched_ = spare;
  wake_ = std::move(wake);
}

void PageSupply::give(PhysicalHandle page) {
  std::lock_guard guard(lock_);
  spare_.push_back(page);
  tell_spare((spare_.size() - 1) * kPageBytes, spare_.size() * kPageBytes);
}

Bytes PageSupply::destroy_spare(Bytes bytes) {
  std::vector<PhysicalHandle> pages;
  {
    std::lock_guard guard(lock_);
    const std::size_t count = std::min<std::size_t>(bytes / kPageBytes, spare_.size());
    pages.assign(spare_.end() - static_cast<std::ptrdiff_t>(count), spare_.end());
    spare_.resize(spare_.size() - count);
    tell_spare((spare_.size() + count) * kPageBytes, spare_.size() * kPageBytes);
  }
  const std::size_t all = pages.size();
  std::erase_if(pages, [this](PhysicalHandle page) { return driver_.destroy(device_, page) == Status::ok; });
  const Bytes destroyed = (all - pages.size()) * kPageBytes;
  std::lock_guard guard(lock_);
  spare_.insert(spare_.end(), pages.begin(), pages.end());
  tell_spare((spare_.size() - pages.size()) * kPageBytes, spare_.size() * kPageBytes);
  count_destroyed(destroyed);
  return destroyed;
}

std::uint64_t PageSupply::room() const {
  std::lock_guard guard(lock_);
  const Bytes reserved = static_cast<Bytes>(reserved_.current);
  const Bytes most = limit_ - limit_ / 16;
  return spare_.size() + (most > reserved ? (most - reserved) / kPageBytes : 0);
}

Bytes PageSupply::spare_bytes() const {
  std::lock_guard guard(lock_);
  return spare_.size() * kPageBytes;
}

}  // namespace poolalloc
