#include "core/backing/page_supply.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <mutex>
#include <utility>

namespace poolalloc {

namespace {

Bytes bytes_of(const std::vector<PhysicalSpan>& spans) {
  Bytes bytes = 0;
  for (const PhysicalSpan& span : spans) bytes += span.pages * kPageBytes;
  return bytes;
}

}  // namespace

void PageSupply::change_spare(std::int64_t bytes) {
  const Bytes before = spare_bytes_;
  spare_bytes_ += static_cast<Bytes>(bytes);
  tell_spare(before, spare_bytes_);
}

Status PageSupply::make(std::uint32_t pages, PhysicalHandle* handle) {
  const Bytes bytes = pages * kPageBytes;
  if (!holdings_.claim(bytes)) return Status::out_of_memory;
  const Status status = driver_.create(device_, bytes, handle);
  holdings_.settle(bytes, status == Status::ok ? bytes : 0);
  std::uint32_t largest = largest_.load(std::memory_order_relaxed);
  while (pages > largest && !largest_.compare_exchange_weak(largest, pages, std::memory_order_relaxed)) {
  }
  return status;
}

std::vector<PhysicalSpan> PageSupply::spare() const {
  std::lock_guard guard(lock_);
  return spare_;
}

bool PageSupply::take_these(std::vector<PhysicalHandle> handles) {
  if (handles.empty()) return true;
  std::sort(handles.begin(), handles.end());
  Bytes left = 0;
  {
    const auto wanted = [&](const PhysicalSpan& span) {
      return std::binary_search(handles.begin(), handles.end(), span.handle);
    };
    std::lock_guard guard(lock_);
    if (static_cast<std::size_t>(std::count_if(spare_.begin(), spare_.end(), wanted)) != handles.size()) return false;
    const auto first = std::stable_partition(spare_.begin(), spare_.end(), std::not_fn(wanted));
    const std::vector<PhysicalSpan> taken(first, spare_.end());
    spare_.erase(first, spare_.end());
    change_spare(-static_cast<std::int64_t>(bytes_of(taken)));
    left = spare_bytes_;
  }
  if (left < watched_) wake_();
  return true;
}

// Spans to give, the last ones first, until they make so many bytes or a little more. With the lock held.
std::vector<PhysicalSpan> PageSupply::pop_spare(Bytes bytes) {
  std::vector<PhysicalSpan> spans;
  for (Bytes found = 0; found < bytes && !spare_.empty(); spare_.pop_back()) {
    spans.push_back(spare_.back());
    found += spare_.back().pages * kPageBytes;
  }
  change_spare(-static_cast<std::int64_t>(bytes_of(spans)));
  return spans;
}

Status PageSupply::prepare(Bytes spare) noexcept {
  for (;;) {
    std::uint32_t pages = 0;
    {
      std::lock_guard guard(lock_);
      if (spare_bytes_ >= spare) return Status::ok;
      pages = static_cast<std::uint32_t>(
          std::min<Bytes>(prepared_pages_, round_up(spare - spare_bytes_, kPageBytes) / kPageBytes));
    }
    PhysicalHandle handle = 0;
    Status status = make(pages, &handle);
    for (; status == Status::out_of_memory && pages > 1; status = make(pages, &handle)) pages /= 2;
    if (status != Status::ok) return status;
    give({handle, pages});
  }
}

void PageSupply::watch_spare(Bytes spare, std::function<void()> wake) {
  watched_ = spare;
  wake_ = std::move(wake);
}

void PageSupply::give(PhysicalSpan span) {
  std::lock_guard guard(lock_);
  spare_.push_back(span);
  change_spare(static_cast<std::int64_t>(span.pages * kPageBytes));
}

Bytes PageSupply::destroy_spare(Bytes bytes) noexcept {
  std::vector<PhysicalSpan> spans;
  {
    std::lock_guard guard(lock_);
    spans = pop_spare(bytes);
  }
  return destroy(std::move(spans));
}

Bytes PageSupply::destroy(std::vector<PhysicalSpan> spans) noexcept {
  if (spans.empty()) return 0;
  std::vector<PhysicalSpan> kept = end_loans(&spans);
  const Bytes all = bytes_of(spans);
  std::erase_if(spans,
                [this](const PhysicalSpan& span) { return driver_.destroy(device_, span.handle) == Status::ok; });
  const Bytes destroyed = all - bytes_of(spans);
  kept.insert(kept.end(), spans.begin(), spans.end());
  std::lock_guard guard(lock_);
  spare_.insert(spare_.end(), kept.begin(), kept.end());
  change_spare(static_cast<std::int64_t>(bytes_of(kept)));
  holdings_.count_destroyed(destroyed);
  return destroyed;
}

// Returns those whose loans do not end now, and removes them from `spans`.
std::vector<PhysicalSpan> PageSupply::end_loans(std::vector<PhysicalSpan>* spans) {
  std::vector<PhysicalHandle> ending;
  for (const PhysicalSpan& span : *spans) ending.push_back(span.handle);
  {
    const std::lock_guard guard(lenders_mutex_);
    for (Lender* lender : lenders_) lender->end_loans(&ending);
  }
  if (ending.size() == spans->size()) return {};
  std::sort(ending.begin(), ending.end());
  const auto stays = [&](const PhysicalSpan& span) {
    return !std::binary_search(ending.begin(), ending.end(), span.handle);
  };
  std::vector<PhysicalSpan> kept;
  std::copy_if(spans->begin(), spans->end(), std::back_inserter(kept), stays);
  std::erase_if(*spans, stays);
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

bool PageSupply::has_room(std::uint64_t pages) const {
  const auto reserved = static_cast<Bytes>(holdings_.reserved().current);
  return reserved + pages * kPageBytes <= holdings_.limit();
}

std::uint64_t PageSupply::held_pages() const { return static_cast<Bytes>(holdings_.reserved().current) / kPageBytes; }

Bytes PageSupply::spare_bytes() const {
  std::lock_guard guard(lock_);
  return spare_bytes_;
}

}  // namespace poolalloc
