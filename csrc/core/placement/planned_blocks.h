// Blocks that lie where a plan says, in a part of a heap's address range that holds nothing else.
//
// Whether a planned place is free is seen from what is there, never concluded from the order of requests: a page that
// a block fills belongs to it alone, and a page that blocks fill in part has a list of the pieces they take of it. So a
// request costs a look at its outer pages and at the states of those between, whatever lives elsewhere. The lists are
// short, for plans are of large blocks; where one is full, a request has no place. A block is found again by its
// offset, of which a plan has only so many.
//
//   blocks on a page, for the page table = 1 where a block fills it, else those that fill it in part
//
// Which place a request gets is for plan_cursor.h. Guarded by the heap's lock.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/backing/page_table.h"
#include "core/base/lazy_array.h"
#include "core/base/types.h"
#include "core/plans/plan.h"

namespace poolalloc {

class PlannedBlocks {
 public:
  struct Block {
    Bytes offset = 0;  // in the heap's range
    Bytes size = 0;
    Bytes requested = 0;  // 0: nothing lives there

    Bytes end() const { return offset + size; }
  };

  static PageIndex pages_of(const StreamPlan& plan) {
    return static_cast<PageIndex>(round_up(plan.height, kPageBytes) / kPageBytes);
  }
  // The plan's addresses are those of the pages from `first` on.
  PlannedBlocks(PageTable& pages, PageIndex first, const StreamPlan& plan);
  PlannedBlocks(const PlannedBlocks&) = delete;
  PlannedBlocks& operator=(const PlannedBlocks&) = delete;

  // What placing a block may cost: pages that become resident up to `room` in any case, beyond that only as long as no
  // more than `waste` of resident pages lies between planned blocks.
  struct Bounds {
    Bytes room = 0, waste = 0;
  };
  // A block at `at`, an offset of the plan. failed: something lives there, a page cannot be had now, or it would cost
  // more than it may; out_of_memory: a page is missing. Nothing has changed then.
  Status allocate(Bytes at, Bytes size, Bytes requested, const Bounds& bounds);
  void free(Block* block);

  bool serves(Bytes offset) const { return offset - start_ < bytes_; }
  Bytes offset_of(Bytes at) const { return start_ + at; }
  // The live block that starts at an offset of the heap's range, or null.
  Block* at(Bytes offset) const {
    Block* block = record(offset);
    return block != nullptr && block->requested != 0 ? block : nullptr;
  }
  // The live block that contains the offset, or null. Looks through all of them unless one starts there.
  const Block* containing(Bytes offset) const;
  // visit(offset, size, requested) for every live block, by address.
  template <typename Visit>
  void visit(Visit visit) const {
    for (const Block* block : by_offset_)
      if (block->requested != 0) visit(block->offset, block->size, block->requested);
  }
  std::uint64_t live_blocks() const { return live_blocks_; }
  // Of pages under planned blocks, what is in none: nothing else can be placed there.
  Bytes waste() const { return used_pages_ * kPageBytes - live_bytes_; }
  Bytes touched() const { return touched_; }  // addresses ever used, counted from the start
  Bytes metadata_bytes() const;
  // Adds each live block to blocks_of.
  void validate(std::vector<std::uint32_t>& blocks_of) const;

 private:
  // What a block takes of a page, in units of kGranularity.
  struct Piece {
    std::uint16_t from, to;
    bool whole() const { return from == 0 && to == kPageBytes / kGranularity; }
    friend bool operator==(const Piece&, const Piece&) = default;
  };
  // Of a page, what blocks take that do not fill it; in no order.
  struct Pieces {
    std::uint32_t count;
    std::array<Piece, 31> list;
  };
  static Piece piece_of(PageIndex page, Bytes offset, Bytes end);
  bool has_room(PageIndex page, Piece piece) const;
  void take(PageIndex page, Piece piece);
  void leave(PageIndex page, Piece piece);

  std::size_t slot_of(Bytes offset) const {
    return static_cast<std::size_t>((offset / kGranularity * 0x9e3779b97f4a7c15) >> shift_);
  }
  Block* record(Bytes offset) const {
    for (std::size_t slot = slot_of(offset);; slot = (slot + 1) & (slots_.size() - 1)) {
      Block* block = slots_[slot];
      if (block == nullptr || block->offset == offset) return block;
    }
  }

  PageTable& pages_;
  const PageIndex first_;
  const Bytes start_, bytes_;
  LazyArray<Pieces> pieces_;
  std::vector<Block> blocks_;  // every offset of the plan
  std::vector<Block*> by_offset_;
  std::vector<Block*> slots_;  // open addressing
  int shift_ = 63;
  std::uint64_t live_blocks_ = 0;
  Bytes live_bytes_ = 0;
  Bytes used_pages_ = 0;  // under at least one of them
  Bytes touched_ = 0;
};

}  // namespace poolalloc
