// The blocks of a heap for a checkpoint of its pool (placement/checkpoint.h), and back to them.
#include "core/heap/heap.h"

namespace poolalloc {

std::vector<PlacedBlock> Heap::placed() const {
  const Guard guard(*this);
  std::vector<PlacedBlock> blocks;
  const auto add = [&](Bytes offset, Bytes size, Bytes requested, Bytes slab) {
    if (!uses_.pending(offset)) blocks.push_back({offset, size, requested, slab});
  };
  slabs_.visit([&](Bytes offset, Bytes size, Bytes requested) {
    add(offset, size, requested, slabs_.find(offset).slab->offset);
  });
  arena_.visit([&](Bytes offset, Bytes size, Bytes requested) { add(offset, size, requested, offset); });
  return blocks;
}

bool Heap::settle() {
  while (has_pending() && poll_pending() != 0) {
  }
  if (has_pending()) wait_pending();
  return !has_pending();
}

Status Heap::place_again(const std::vector<PlacedBlock>& blocks) noexcept {
  const Guard guard(*this);
  pages_.permit(PageTable::Source::any, may_unmap());
  // First what needs no mapping: a frame that a block will find at its place must not be mapped elsewhere for another.
  const auto mapped = [&](const PlacedBlock& block) {
    const auto first = static_cast<PageIndex>(block.offset / kPageBytes);
    return pages_.cost(first, static_cast<PageIndex>((block.offset + block.size - 1) / kPageBytes)).maps == 0;
  };
  std::vector<const PlacedBlock*> left;
  const auto place_one = [&](const PlacedBlock& block) {
    const bool small = slabs_.serves(static_cast<PageIndex>(block.offset / kPageBytes));
    const Status status =
        small ? slabs_.allocate_at(block) : arena_.allocate_at(block.offset, block.size, block.requested);
    if (status != Status::ok) return status;
    if (!small) arena_bytes_.add(block.size);
    counts_.add(small ? kSmall : kLarge, block.requested, block.size);
    note_pages_if_changed();
    note_unused(small ? kSmall : kLarge);
    return status;
  };
  for (const PlacedBlock& block : blocks) {
    if (!mapped(block)) {
      left.push_back(&block);
    } else if (const Status status = place_one(block); status != Status::ok) {
      return status;
    }
  }
  for (const PlacedBlock* block : left)
    if (const Status status = place_one(*block); status != Status::ok) return status;
  if (attention_ != 0) attend();
  return Status::ok;
}

}  // namespace poolalloc
