#include "core/placement/planned_blocks.h"

#include <algorithm>
#include <bit>

#include "core/base/check.h"

namespace poolalloc {

namespace {

PageIndex page_of(Bytes offset) { return static_cast<PageIndex>(offset / kPageBytes); }

}  // namespace

PlannedBlocks::PlannedBlocks(PageTable& pages, PageIndex first, const StreamPlan& plan)
    : pages_(pages),
      first_(first),
      start_(first * kPageBytes),
      bytes_(pages_of(plan) * kPageBytes),
      pieces_(pages_of(plan)) {
  std::vector<Bytes> offsets;
  for (const PlannedRequest& request : plan.requests)
    if (request.offset != PlannedRequest::kNowhere) offsets.push_back(start_ + request.offset);
  std::sort(offsets.begin(), offsets.end());
  offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
  blocks_.resize(offsets.size());
  const std::size_t slots = std::bit_ceil(std::max<std::size_t>(2 * offsets.size(), 2));
  slots_.resize(slots);
  shift_ = 64 - std::countr_zero(slots);
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    blocks_[i].offset = offsets[i];
    by_offset_.push_back(&blocks_[i]);
    std::size_t slot = slot_of(offsets[i]);
    while (slots_[slot] != nullptr) slot = (slot + 1) & (slots - 1);
    slots_[slot] = &blocks_[i];
  }
}

// --- pages filled in part ----------------------------------------------------------------------------------------

PlannedBlocks::Piece PlannedBlocks::piece_of(PageIndex page, Bytes offset, Bytes end) {
  const Bytes start = page * kPageBytes;
  const Bytes from = offset > start ? offset - start : 0;
  const Bytes to = std::min(end - start, kPageBytes);
  return {static_cast<std::uint16_t>(from / kGranularity), static_cast<std::uint16_t>(to / kGranularity)};
}

bool PlannedBlocks::has_room(PageIndex page, Piece piece) const {
  const std::uint32_t blocks = pages_.blocks(page);
  if (blocks == 0) return true;
  const Pieces& taken = pieces_[page - first_];
  if (taken.count != blocks || taken.count == taken.list.size()) return false;  // a block fills it, or the list is full
  for (std::uint32_t i = 0; i < taken.count; ++i)
    if (piece.from < taken.list[i].to && taken.list[i].from < piece.to) return false;
  return true;
}

void PlannedBlocks::take(PageIndex page, Piece piece) {
  if (piece.whole()) return;
  Pieces& taken = pieces_[page - first_];
  taken.list[taken.count++] = piece;
}

void PlannedBlocks::leave(PageIndex page, Piece piece) {
  if (piece.whole()) return;
  Pieces& taken = pieces_[page - first_];
  std::uint32_t i = 0;
  while (taken.list[i] != piece) ++i;
  taken.list[i] = taken.list[--taken.count];
}

// --- blocks ------------------------------------------------------------------------------------------------------

Status PlannedBlocks::allocate(Bytes at, Bytes size, Bytes requested, const Bounds& bounds) {
  const Bytes offset = start_ + at, end = offset + size;
  const PageIndex first = page_of(offset), last = page_of(end - 1);
  const Piece low = piece_of(first, offset, end), high = piece_of(last, offset, end);
  if (!has_room(first, low) || (first != last && !has_room(last, high))) return Status::failed;
  const PageTable::Cost cost = pages_.cost(first, last);
  if (!cost.possible) return Status::failed;
  // Of the pages, all are free but the outer ones, on which others may live beside it.
  const std::uint32_t shared = (pages_.blocks(first) != 0) + (first != last && pages_.blocks(last) != 0);
  if (cost.resident + shared != last - first + 1) return Status::failed;
  const Bytes added = cost.resident * kPageBytes;
  if (added > bounds.room && waste() + added > bounds.waste + size) return Status::failed;
  const Status status = pages_.acquire(first, last);
  if (status != Status::ok) return status;
  take(first, low);
  if (first != last) take(last, high);
  Block* block = record(offset);
  block->size = size;
  block->requested = requested;
  ++live_blocks_;
  live_bytes_ += size;
  used_pages_ += cost.resident;
  touched_ = std::max(touched_, at + size);
  return Status::ok;
}

void PlannedBlocks::free(Block* block) {
  const PageIndex first = page_of(block->offset), last = page_of(block->end() - 1);
  pages_.release(first, last);
  const std::uint32_t kept = (pages_.blocks(first) != 0) + (first != last && pages_.blocks(last) != 0);
  used_pages_ -= last - first + 1 - kept;
  live_bytes_ -= block->size;
  leave(first, piece_of(first, block->offset, block->end()));
  if (first != last) leave(last, piece_of(last, block->offset, block->end()));
  block->requested = 0;
  --live_blocks_;
}

const PlannedBlocks::Block* PlannedBlocks::containing(Bytes offset) const {
  if (const Block* block = at(offset / kGranularity * kGranularity)) return block;
  for (const Block* block : by_offset_) {
    if (block->offset > offset) break;
    if (block->requested != 0 && offset < block->end()) return block;
  }
  return nullptr;
}

Bytes PlannedBlocks::metadata_bytes() const {
  const Bytes pages = round_up(touched_, kPageBytes) / kPageBytes;
  return sizeof(*this) + blocks_.capacity() * (sizeof(Block) + sizeof(Block*)) + slots_.capacity() * sizeof(Block*) +
         pages * sizeof(Pieces);
}

void PlannedBlocks::validate(std::vector<std::uint32_t>& blocks_of) const {
  std::vector<std::uint32_t> partly(page_of(bytes_));
  std::uint64_t live = 0;
  Bytes end = start_, bytes = 0;
  visit([&](Bytes offset, Bytes size, Bytes requested) {
    POOLALLOC_ENSURE(offset >= end && serves(offset + size - 1),
                     "planned blocks do not overlap, and lie in their part");
    POOLALLOC_ENSURE(requested <= size && size % kGranularity == 0, "requested <= rounded");
    POOLALLOC_ENSURE(record(offset)->offset == offset, "a planned block is found by its offset");
    end = offset + size;
    bytes += size;
    ++live;
    for (PageIndex page = page_of(offset); page <= page_of(end - 1); ++page) {
      ++blocks_of[page];
      const Piece piece = piece_of(page, offset, end);
      if (piece.whole()) continue;
      ++partly[page - first_];
      const Pieces& taken = pieces_[page - first_];
      POOLALLOC_ENSURE(
          std::find(taken.list.begin(), taken.list.begin() + taken.count, piece) != taken.list.begin() + taken.count,
          "a page knows what blocks take of it");
    }
  });
  POOLALLOC_ENSURE(live == live_blocks_ && bytes == live_bytes_, "planned blocks are counted");
  Bytes used = 0;
  for (PageIndex page = 0; page < page_of(bytes_); ++page) used += pages_.blocks(first_ + page) != 0;
  POOLALLOC_ENSURE(used == used_pages_, "pages under planned blocks are counted");
  for (PageIndex page = 0; page * kPageBytes < touched_; ++page)
    POOLALLOC_ENSURE(pieces_[page].count == partly[page], "a page has no piece that no block takes");
}

}  // namespace poolalloc
