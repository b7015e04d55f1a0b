#include "core/placement/exact_bins.h"

#include <algorithm>

#include "core/base/check.h"

namespace poolalloc {

ExactBins::ExactBins(Arena& arena, const std::vector<ExactBin>& bins) : arena_(arena) {
  bins_.reserve(bins.size());
  for (const ExactBin& each : bins) {
    Bin& bin = bins_.emplace_back();
    bin.size = round_up(each.size, kGranularity);
    bin.keep = static_cast<std::size_t>(each.keep);
    bin.preallocate = static_cast<std::size_t>(each.preallocate);
    bin.index = static_cast<std::uint32_t>(bins_.size() - 1);
    std::size_t slot = slot_of(bin.size);
    while (slots_[slot] != nullptr) slot = (slot + 1) % kSlots;
    slots_[slot] = &bin;
  }
}

// Null if there are no such blocks.
ExactBins::Bin* ExactBins::with_oldest(Which which) {
  Bin* oldest = nullptr;
  for (Bin& bin : bins_)
    if (bin.blocks.size() > (which == Which::surplus ? bin.preallocate : 0) &&
        (oldest == nullptr || bin.blocks.front().number < oldest->blocks.front().number))
      oldest = &bin;
  return oldest;
}

Bytes ExactBins::release(Bytes bytes, Which which, std::uint64_t up_to) {
  Bytes released = 0;
  while (released < bytes) {
    Bin* bin = with_oldest(which);
    if (bin == nullptr || bin->blocks.front().number > up_to) break;
    surplus_ -= bin->blocks.size() > bin->preallocate;
    arena_.release(bin->blocks.front().block);
    bin->blocks.erase(bin->blocks.begin());
    released += bin->size;
    --blocks_;
    ++released_;
  }
  return released;
}

Bytes ExactBins::bytes() const {
  Bytes bytes = 0;
  for (const Bin& bin : bins_) bytes += bin.size * bin.blocks.size();
  return bytes;
}

Bytes ExactBins::metadata_bytes() const {
  Bytes bytes = sizeof(*this) + bins_.capacity() * sizeof(Bin);
  for (const Bin& bin : bins_) bytes += bin.blocks.capacity() * sizeof(Bin::Kept);
  return bytes;
}

void ExactBins::validate() const {
  std::uint64_t blocks = 0, surplus = 0;
  for (const Bin& bin : bins_) {
    POOLALLOC_ENSURE(find(bin.size) == &bin, "every exact bin is found by its size");
    POOLALLOC_ENSURE(bin.blocks.size() <= bin.keep, "an exact bin keeps no more than it may");
    std::uint64_t before = 0;
    for (const Bin::Kept& kept : bin.blocks) {
      POOLALLOC_ENSURE(kept.number > before && kept.number <= last_number_, "kept blocks are in their order");
      POOLALLOC_ENSURE(kept.block->kept() && kept.block->size == bin.size,
                       "kept blocks are blocks of their bin's size");
      before = kept.number;
    }
    blocks += bin.blocks.size();
    surplus += bin.blocks.size() - std::min(bin.blocks.size(), bin.preallocate);
  }
  POOLALLOC_ENSURE(surplus == surplus_, "the surplus is counted");
  POOLALLOC_ENSURE(blocks == blocks_ && blocks == arena_.kept_blocks(), "kept blocks are counted");
}

}  // namespace poolalloc
