#include "core/page_supply.h"

#include <algorithm>
#include <functional>
#include <iterator>
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
    if (missing != 0 && !holdings_.claim(missing * kPageBytes)) return Status::out_of_memory;
    taken = pop_spare(spare);
    spare_left = spare_.size() * kPageBytes;
  }
  if (spare_left < watched_) wake_();
  Status status = Status::ok;
  std::size_t made = 0;
  for (; made < missing && status == Status::ok; made += status == Status::ok) {
    PhysicalHandle page = 0;
    status = driver_.create(device_, kPageBytes, &page);
    if (status == Status::ok) taken.push_back(page);
  }
  if (missing != 0) holdings_.settle(missing * kPageBytes, made * kPageBytes);
  if (status == Status::ok) {
    pages->insert(pages->end(), taken.begin(), taken.end());
  } else {
    std::lock_guard guard(lock_);
    spare_.insert(spare_.end(), taken.begin(), taken.end());
    tell_spare((spare_.size() - taken.size()) * kPageBytes, spare_.size() * kPageBytes);
  }
  return status;
}

Status PageSupply::take_spare(std::uint32_t* count, std::vector<PhysicalHandle>* pages) {
  std::size_t left = 0;
  {
    std::lock_guard guard(lock_);
    if (spare_.size() < *count) {
      *count -= static_cast<std::uint32_t>(spare_.size());
      return Status::out_of_memory;
    }
    const std::vector<PhysicalHandle> taken = pop_spare(*count);
    pages->insert(pages->end(), taken.begin(), taken.end());
    left = spare_.size();
  }
  if (left * kPageBytes < watched_) wake_();
  return Status::ok;
}

// With the lock held; there are so many.
std::vector<PhysicalHandle> PageSupply::pop_spare(std::size_t count) {
  const auto first = spare_.end() - static_cast<std::ptrdiff_t>(count);
  std::vector<PhysicalHandle> pages(first, spare_.end());
  spare_.erase(first, spare_.end());
  tell_spare((spare_.size() + count) * kPageBytes, spare_.size() * kPageBytes);
  return pages;
}

std::vector<PhysicalHandle> PageSupply::take_these(std::vector<PhysicalHandle> pages) {
  if (pages.empty()) return pages;
  std::sort(pages.begin(), pages.end());
  const auto wanted = [&](PhysicalHandle page) { return std::binary_search(pages.begin(), pages.end(), page); };
  std::lock_guard guard(lock_);
  const auto first = std::stable_partition(spare_.begin(), spare_.end(), std::not_fn(wanted));
  std::vector<PhysicalHandle> taken(first, spare_.end());
  spare_.erase(first, spare_.end());
  tell_spare((spare_.size() + taken.size()) * kPageBytes, spare_.size() * kPageBytes);
  return taken;
}

Status PageSupply::prepare(Bytes spare) noexcept {
  for (;;) {
    {
      std::lock_guard guard(lock_);
      if (spare_.size() * kPageBytes >= spare) return Status::ok;
      if (!holdings_.claim(kPageBytes)) return Status::out_of_memory;
    }
    PhysicalHandle page = 0;
    const Status status = driver_.create(device_, kPageBytes, &page);
    holdings_.settle(kPageBytes, status == Status::ok ? kPageBytes : 0);
    if (status != Status::ok) return status;
    std::lock_guard guard(lock_);
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

Bytes PageSupply::destroy_spare(Bytes bytes) noexcept {
  std::vector<PhysicalHandle> pages;
  {
    std::lock_guard guard(lock_);
    pages = pop_spare(std::min<std::size_t>(bytes / kPageBytes, spare_.size()));
  }
  if (pages.empty()) return 0;
  std::vector<PhysicalHandle> kept = end_loans(&pages);
  const std::size_t all = pages.size();
  std::erase_if(pages, [this](PhysicalHandle page) { return driver_.destroy(device_, page) == Status::ok; });
  const Bytes destroyed = (all - pages.size()) * kPageBytes;
  kept.insert(kept.end(), pages.begin(), pages.end());
  std::lock_guard guard(lock_);
  spare_.insert(spare_.end(), kept.begin(), kept.end());
  tell_spare((spare_.size() - kept.size()) * kPageBytes, spare_.size() * kPageBytes);
  holdings_.count_destroyed(destroyed);
  return destroyed;
}

// Returns those whose loans do not end now, and removes them from `pages`.
std::vector<PhysicalHandle> PageSupply::end_loans(std::vector<PhysicalHandle>* pages) {
  const std::vector<PhysicalHandle> all = *pages;
  {
    const std::lock_guard guard(lenders_mutex_);
    for (Lender* lender : lenders_) lender->end_loans(pages);
  }
  if (pages->size() == all.size()) return {};
  std::vector<PhysicalHandle> kept, gone = *pages;
  std::sort(gone.begin(), gone.end());
  std::copy_if(all.begin(), all.end(), std::back_inserter(kept),
               [&](PhysicalHandle page) { return !std::binary_search(gone.begin(), gone.end(), page); });
  return kept;
}

void PageSupply::add_lender(Lender* lender) {
  const std::lock_guard guard(lenders_mutex_);
  lenders_.push_back(lender);
}

void PageSupply::remove_lender(Lender* lender) {
  const std::lock_guard guard(lenders_mutex_);
  std::erase(lenders_, lender);
}

std::uint64_t PageSupply::room() const { return (spare_bytes() + holdings_.room()) / kPageBytes; }

Bytes PageSupply::spare_bytes() const {
  std::lock_guard guard(lock_);
  return spare_.size() * kPageBytes;
}

}  // namespace poolalloc
