#include "core/backing/segment_supply.h"

#include <algorithm>
#include <mutex>

#include "core/backing/address_table.h"

namespace poolalloc {

Status SegmentSupply::take(const SegmentNeed& need, Segment* segment) {
  if (take_spare(need, segment)) return Status::ok;
  if (source_ != nullptr) return Status::not_ready;
  return make_wanted(need, 0, segment);
}

Status SegmentSupply::ask(const SegmentNeed& need, StreamId stream) {
  Segment segment;
  const Status status = make_wanted(need, stream, &segment);
  if (status == Status::ok) give(segment);
  return status;
}

Status SegmentSupply::make_wanted(const SegmentNeed& need, StreamId stream, Segment* segment) {
  Status status = Status::out_of_memory;
  if (need.wanted > need.pages) status = make(need.wanted, stream, segment);
  if (status == Status::out_of_memory) status = make(need.pages, stream, segment);
  return status;
}

bool SegmentSupply::take_spare(const SegmentNeed& need, Segment* segment) {
  // What was made with a page more may turn out to be aligned.
  const Bytes more = aligned_.load(std::memory_order_relaxed) ? 0 : 1;
  std::lock_guard guard(lock_);
  auto best = spare_.end();
  for (auto each = spare_.begin(); each != spare_.end(); ++each)
    if (each->pages() >= need.pages && each->pages() - more <= need.most &&
        (best == spare_.end() || each->pages() < best->pages()))
      best = each;
  if (best == spare_.end()) return false;
  *segment = *best;
  const Bytes before = spare_sum();
  spare_.erase(best);
  tell_spare(before, before - segment->bytes);
  return true;
}

// An allocation that turns out to start elsewhere than at a page is spare, and one of a page more does instead.
Status SegmentSupply::make(Bytes pages, StreamId stream, Segment* segment) {
  for (;;) {
    const bool aligned = aligned_.load(std::memory_order_relaxed);
    Segment made;
    const Status status = allocate((pages + (aligned ? 0 : 1)) * kPageBytes, stream, &made);
    if (status != Status::ok) return status;
    if (made.pages() >= pages) {
      *segment = made;
      return Status::ok;
    }
    aligned_.store(false, std::memory_order_relaxed);
    give(made);
    if (source_ != nullptr) destroy_spare(made.bytes);
  }
}

Status SegmentSupply::allocate(Bytes bytes, StreamId stream, Segment* segment) {
  if (!holdings_.claim(bytes)) return Status::out_of_memory;
  struct Claim {  // settled when the source throws, too
    ~Claim() { holdings.settle(bytes, made); }
    Holdings& holdings;
    const Bytes bytes;
    Bytes made = 0;
  } claim{holdings_, bytes};
  Status status = Status::ok;
  if (source_ == nullptr)
    status = driver_.allocate_segment(device_, bytes, &segment->allocation);
  else if (segment->allocation = source_->allocate(bytes, device_, stream); segment->allocation == 0)
    status = Status::out_of_memory;
  if (status == Status::ok && !AddressTable::covers(segment->allocation, bytes)) {
    free({segment->allocation, bytes});
    if (source_ != nullptr) throw DriverError(AddressTable::kBeyond);
    return Status::failed;
  }
  if (status == Status::ok) segment->bytes = claim.made = bytes;
  return status;
}

bool SegmentSupply::free(const Segment& segment) {
  if (source_ != nullptr) return source_->free(segment.allocation, device_);
  return driver_.free_segment(device_, segment.allocation) == Status::ok;
}

void SegmentSupply::give(const Segment& segment) {
  std::lock_guard guard(lock_);
  spare_.push_back(segment);
  tell_spare(spare_sum() - segment.bytes, spare_sum());
}

Bytes SegmentSupply::destroy_spare(Bytes bytes) noexcept {
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
    if (!free(segment)) return false;
    destroyed += segment.bytes;
    return true;
  });
  std::lock_guard guard(lock_);
  const Bytes before = spare_sum();
  spare_.insert(spare_.end(), segments.begin(), segments.end());
  tell_spare(before, spare_sum());
  holdings_.count_destroyed(destroyed);
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
