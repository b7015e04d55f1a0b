#include "core/segment_supply.h"

#include <algorithm>
#include <mutex>

namespace poolalloc {

Status SegmentSupply::take(Bytes pages, Bytes wanted, Bytes most, Segment* segment) {
  if (take_spare(pages, most, segment)) return Status::ok;
  Status status = Status::out_of_memory;
  if (wanted > pages) status = make(wanted, segment);
  if (status == Status::out_of_memory) status = make(pages, segment);
  return status;
}

bool SegmentSupply::take_spare(Bytes pages, Bytes most, Segment* segment) {
  std::lock_guard guard(lock_);
  auto best = spare_.end();
  for (auto each = spare_.begin(); each != spare_.end(); ++each)
    if (each->pages() >= pages && each->pages() <= most && (best == spare_.end() || each->pages() < best->pages()))
      best = each;
  if (best == spare_.end()) return false;
  *segment = *best;
  const Bytes before = spare_sum();
  spare_.erase(best);
  tell_spare(before, before - segment->bytes);
  return true;
}

// An allocation that turns out to start elsewhere than at a page is spare, and one of a page more does instead.
Status SegmentSupply::make(Bytes pages, Segment* segment) {
  for (;;) {
    const bool aligned = aligned_.load(std::memory_order_relaxed);
    const Bytes bytes = (pages + (aligned ? 0 : 1)) * kPageBytes;
    {
      std::lock_guard guard(lock_);
      if (!claim(bytes)) return Status::out_of_memory;
    }
    Segment made;
    const Status status = driver_.allocate_segment(device_, bytes, &made.allocation);
    if (status == Status::ok) made.bytes = bytes;
    std::lock_guard guard(lock_);
    settle(bytes, made.bytes);
    if (status != Status::ok) return status;
    if (made.pages() >= pages) {
      *segment = made;
      return Status::ok;
    }
    aligned_.store(false, std::memory_order_relaxed);
    spare_.push_back(made);
    tell_spare(spare_sum() - made.bytes, spare_sum());
  }
}

void SegmentSupply::give(const Segment& segment) {
  std::lock_guard guard(lock_);
  spare_.push_back(segment);
  tell_spare(spare_sum() - segment.bytes, spare_sum());
}

Bytes SegmentSupply::destroy_spare(Bytes bytes) {
  std::vector<Segment> segments;
  {
    std::lock_guard guard(lock_);
    const Bytes before = spare_sum();
    for (Bytes chosen = 0; chosen < bytes && !spare_.empty(); spare_.pop_back()) {
      segments.push_back(spare_.back());
      chosen += spare_.back().bytes;
    }
    tell_spare(before, spare_sum());
  }
  Bytes destroyed = 0;
  std::erase_if(segments, [&](const Segment& segment) {
    if (driver_.free_segment(device_, segment.allocation) != Status::ok) return false;
    destroyed += segment.bytes;
    return true;
  });
  std::lock_guard guard(lock_);
  const Bytes before = spare_sum();
  spare_.insert(spare_.end(), segments.begin(), segments.end());
  tell_spare(before, spare_sum());
  count_destroyed(destroyed);
  return destroyed;
}

Bytes SegmentSupply::spare_bytes() const {
  std::lock_guard guard(lock_);
  return spare_sum();
}

Bytes SegmentSupply::spare_sum() const {
  Bytes bytes = 0;
  for (const Segment& segment : spare_) bytes += segment.bytes;
  return bytes;
}

}  // namespace poolalloc
