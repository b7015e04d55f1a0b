// Blocks that exact bins keep (exact_bins.h): taken, made ahead, kept and released, and what the heap counts of it.
#include "core/heap/heap.h"

namespace poolalloc {

// With the lock held, as what follows.

// A block that nobody uses any more; the bin has room.
void Heap::keep(ExactBins::Bin& bin, Arena::Block* block) {
  exact_->bins.keep(bin, block);
  kept_bytes_.add(bin.size);
  aside_bytes_ += static_cast<std::int64_t>(bin.size);
}

// At the first request of this size on the device, and not while a graph is being captured: so many blocks, or as many
// as there is memory for without taking any from elsewhere. Whether there is one now.
bool Heap::make_ahead(ExactBins::Bin& bin) {
  const std::uint64_t own = std::uint64_t{1} << bin.index;
  if (bin.preallocate == 0 || shared_.gate.captures() ||
      (shared_.made_ahead.load(std::memory_order_relaxed) & own) != 0 ||
      (shared_.made_ahead.fetch_or(own, std::memory_order_relaxed) & own) != 0)
    return false;
  pages_.permit(Source::any, may_unmap());
  Status status = Status::ok;
  for (Bytes offset = 0, rounded = 0; status == Status::ok && bin.blocks.size() < bin.preallocate;) {
    status = place(bin.size, &offset, &rounded);
    if (status != Status::ok) break;
    exact_->made_ahead += rounded;
    keep(bin, arena_.at(offset));
  }
  if (status != Status::ok) pages_.return_left_behind();
  note_progress();
  note_pages_if_changed();
  note_unused(kLarge);
  return !bin.blocks.empty();
}

Bytes Heap::release_kept(Bytes bytes) noexcept {
  const Guard guard(*this);
  return release_kept_locked(bytes, ExactBins::Which::all);
}

// Of those up to this number.
Bytes Heap::release_kept_locked(Bytes bytes, ExactBins::Which which, std::uint64_t up_to) {
  if (exact_ == nullptr) return 0;
  const Bytes released = exact_->bins.release(bytes, which, up_to);
  if (released == 0) return 0;
  kept_bytes_.subtract(released);
  aside_bytes_ -= static_cast<std::int64_t>(released);
  arena_bytes_.subtract(released);
  exact_->released += released;
  note_unused(kLarge);
  loans_moved();
  return released;
}

}  // namespace poolalloc
