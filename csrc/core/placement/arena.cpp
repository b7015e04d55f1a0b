#include "core/placement/arena.h"

#include <algorithm>
#include <bit>

#include "core/base/check.h"

namespace poolalloc {

namespace {
PageIndex page_of(Bytes offset) { return static_cast<PageIndex>(offset / kPageBytes); }
}  // namespace

Arena::Arena(PageTable& residency, PageIndex first, int candidates)
    : residency_(residency),
      first_offset_(first * kPageBytes),
      candidates_(candidates),
      top_(first_offset_),
      highest_(top_) {}

Status Arena::allocate(Bytes bytes, Block** block) {
  if (bytes > kMaxBinnedBytes) return Status::out_of_memory;  // no device has so much, and no class of holes
  const Bytes size = round_up(bytes, kGranularity);
  Place place = ready_place(size);
  const Status status = place.found() ? residency_.acquire(page_of(place.offset), page_of(place.offset + size - 1))
                                      : place_at_a_price(size, &place);
  if (status != Status::ok) return status;
  *block = carve(place.hole, place.offset, size);
  (*block)->requested = bytes;
  ++live_blocks_;
  last_end_ = (*block)->end();
  ++placed_in_a_row_;
  cohorts_.came(size, last_end_);
  return Status::ok;
}

Status Arena::allocate_hole(Bytes bytes, Block** block) {
  const auto pages_possible = [this](const Block& hole) {
    return residency_.cost(page_of(hole.offset), page_of(hole.end() - 1)).possible;
  };
  Block* hole = holes_.at_least(round_up(bytes, kGranularity));
  while (hole != nullptr && !pages_possible(*hole)) hole = hole->larger;
  if (hole == nullptr) return Status::not_supported;
  const Status status = residency_.acquire(page_of(hole->offset), page_of(hole->end() - 1));
  if (status != Status::ok) return status;
  holes_.remove(hole);
  hole->requested = bytes;
  ++live_blocks_;
  *block = hole;
  return status;
}

void Arena::free(Block* block) {
  placed_in_a_row_ = 0;
  cohorts_.left(block->size);
  residency_.release(page_of(block->offset), page_of(block->end() - 1));
  block->requested = 0;
  --live_blocks_;
  if (Block* before = block->previous; before != nullptr && !before->live()) {
    holes_.remove(before);
    before->size += block->size;
    remove(block);
    block = before;
  }
  if (Block* after = block->next; after != nullptr && !after->live()) {
    holes_.remove(after);
    block->size += after->size;
    remove(after);
  }
  if (block->next == nullptr) {
    top_ = block->offset;  // the pages keep their frames, and are fresh addresses again
    remove(block);
  } else {
    holes_.insert(block);
  }
}

Arena::Block* Arena::carve(Block* hole, Bytes offset, Bytes size) {
  if (hole == nullptr) {
    if (offset > top_) holes_.insert(insert_between(last_, nullptr, top_, offset - top_));
    top_ = offset + size;
    highest_ = std::max(highest_, top_);
    return insert_between(last_, nullptr, offset, size);
  }
  const Bytes rest = hole->end() - (offset + size);
  holes_.remove(hole);
  Block* block = hole;
  if (offset > hole->offset) {  // the hole keeps its low part
    hole->size = offset - hole->offset;
    holes_.insert(hole);
    block = insert_between(hole, hole->next, offset, size);
  }
  block->size = size;
  if (rest != 0) holes_.insert(insert_between(block, block->next, block->end(), rest));
  return block;
}

Arena::Block* Arena::insert_between(Block* previous, Block* next, Bytes offset, Bytes size) {
  Block* block = take_record();
  block->offset = offset;
  block->size = size;
  block->previous = previous;
  block->next = next;
  (previous != nullptr ? previous->next : first_) = block;
  (next != nullptr ? next->previous : last_) = block;
  const PageIndex page = page_of(offset);
  Block* starts = residency_.owner<Block>(page);
  if (starts == nullptr || starts->offset > offset) residency_.set_owner(page, block);
  return block;
}

void Arena::remove(Block* block) {
  const PageIndex page = page_of(block->offset);
  if (residency_.owner<Block>(page) == block) {
    const bool next_here = block->next != nullptr && page_of(block->next->offset) == page;
    residency_.set_owner(page, next_here ? block->next : nullptr);
  }
  (block->previous != nullptr ? block->previous->next : first_) = block->next;
  (block->next != nullptr ? block->next->previous : last_) = block->previous;
  records_.give(block);
}

Arena::Block* Arena::take_record() {
  Block* block = records_.take();
  block->requested = 0;
  return block;
}

// --- segments ----------------------------------------------------------------------------------------------------

void Arena::wall_up() {
  top_ = residency_.pages() * kPageBytes;
  insert_between(nullptr, nullptr, first_offset_, top_ - first_offset_)->requested = kWall;
}

void Arena::open(PageIndex first, PageIndex end) {
  Block* wall = nullptr;
  for (PageIndex page = first; wall == nullptr; --page) wall = residency_.owner<Block>(page);
  const Bytes wall_end = wall->end();
  wall->size = first * kPageBytes - wall->offset;
  Block* hole = insert_between(wall, wall->next, first * kPageBytes, (end - first) * kPageBytes);
  insert_between(hole, hole->next, hole->end(), wall_end - hole->end())->requested = kWall;
  holes_.insert(hole);
  highest_ = std::max(highest_, hole->end());
}

void Arena::close(PageIndex first) {
  Block* hole = at(first * kPageBytes);
  Block* wall = hole->previous;
  holes_.remove(hole);
  wall->size += hole->size + hole->next->size;
  remove(hole->next);
  remove(hole);
}

// --- looking up --------------------------------------------------------------------------------------------------

Arena::Block* Arena::at(Bytes offset) const {
  Block* block = residency_.owner<Block>(page_of(offset));
  while (block != nullptr && block->offset < offset) block = block->next;
  return block != nullptr && block->offset == offset ? block : nullptr;
}

Arena::Block* Arena::containing(Bytes offset) const {
  if (offset < first_offset_ || offset >= top_) return nullptr;
  Block* block = covering(offset);
  return block->in_use() ? block : nullptr;
}

// The block, hole or wall at an offset below the top.
Arena::Block* Arena::covering(Bytes offset) const {
  // The nearest page at or before the offset in which a block starts at or before it.
  for (PageIndex page = page_of(offset);; --page) {
    Block* block = residency_.owner<Block>(page);
    if (block != nullptr && block->offset <= offset) {
      while (block->end() <= offset) block = block->next;
      return block;
    }
  }
}

void Arena::validate(std::vector<std::uint32_t>& blocks_of) const {
  Bytes expected = first_offset_;
  std::uint64_t live = 0, kept = 0, holes = 0;
  const Block* previous = nullptr;
  for (const Block* block = first_; block != nullptr; previous = block, block = block->next) {
    POOLALLOC_ENSURE(block->offset == expected, "blocks and holes tile the arena");
    POOLALLOC_ENSURE(block->size != 0 && block->size % kGranularity == 0, "sizes are multiples of the granularity");
    POOLALLOC_ENSURE(block->previous == previous, "neighbours are doubly linked");
    expected = block->end();
    if (previous == nullptr || page_of(previous->offset) != page_of(block->offset))
      POOLALLOC_ENSURE(residency_.owner<Block>(page_of(block->offset)) == block,
                       "a page knows the first block that starts in it");
    if (block->wall()) {
      POOLALLOC_ENSURE(block->offset % kPageBytes == 0 && block->size % kPageBytes == 0, "walls are whole pages");
    } else if (block->live()) {
      POOLALLOC_ENSURE(block->kept() || block->requested <= block->size, "requested <= rounded");
      ++(block->kept() ? kept : live);
      for (PageIndex page = page_of(block->offset); page <= page_of(block->end() - 1); ++page) ++blocks_of[page];
    } else {
      POOLALLOC_ENSURE(previous == nullptr || previous->live(), "neighbouring holes are merged");
      POOLALLOC_ENSURE(block->next != nullptr, "no hole lies under the top");
      ++holes;
    }
  }
  POOLALLOC_ENSURE(previous == last_ && expected == top_, "the last block ends at the top");
  POOLALLOC_ENSURE(live == live_blocks_ && kept == kept_blocks_, "live blocks and kept ones are counted");
  POOLALLOC_ENSURE(holes_.valid(), "holes are ordered by size and address");
  POOLALLOC_ENSURE(holes == holes_.count(), "every hole is indexed and counted once");
}

}  // namespace poolalloc
