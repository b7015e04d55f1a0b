// The arena of a heap: blocks of any size, placed at 512 B granularity in holes of one large address range.
//
// Blocks and holes tile [first page, top) without gaps, neighbouring holes are merged, and everything from top on is
// fresh. A hole owns no memory: page_table.h knows which of its pages have memory. A block goes to a *ready* place,
// whose pages all have memory at hand, the lowest one first. Only where there is none are places priced, in
// microseconds of the driver and in memory (residency.h), and the cheapest is taken (arena_placement.cpp).
//
// A block may be *kept* when it dies: it stays as it is, its pages too, and is in no index (exact_bins.h).
//
// Where memory comes in segments (segments.h) there are no fresh addresses: what is between segments is a *wall*, which
// looks like a live block to its neighbours, so that no hole grows beyond its segment.
//
// Holes by size are hole_index.h. Guarded by the heap's lock. Not for small blocks: slabs.h.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "core/backing/page_table.h"
#include "core/base/record_pool.h"
#include "core/base/types.h"
#include "core/placement/cohorts.h"
#include "core/placement/hole_index.h"

namespace poolalloc {

class Arena {
 public:
  static constexpr Bytes kWall = ~Bytes{0};
  static constexpr Bytes kKept = kWall - 1;
  struct Block {
    Bytes offset = 0;     // from the start of the heap's range
    Bytes size = 0;       // multiple of kGranularity
    Bytes requested = 0;  // 0: a hole; kWall: a wall; kKept: kept
    Block* previous = nullptr;
    Block* next = nullptr;  // neighbours by address; null above the topmost block
    Block *left = nullptr, *right = nullptr, *smaller = nullptr, *larger = nullptr;  // of a hole: hole_index.h
    std::uint32_t priority = 0;

    bool live() const { return requested != 0; }  // or looks so to its neighbours
    bool wall() const { return requested == kWall; }
    bool kept() const { return requested == kKept; }
    bool in_use() const { return live() && requested < kKept; }
    Bytes end() const { return offset + size; }
  };

  // The arena uses pages first .. residency.pages() - 1.
  Arena(PageTable& residency, PageIndex first, int candidates);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Places a block of round_up(bytes, 512). ok: *block is live and resident. Else nothing has changed: out_of_memory,
  // or not_supported if no addresses are left.
  Status allocate(Bytes bytes, Block** block);
  // A whole hole for the block, the smallest that will do, so that it has no neighbour but walls.
  Status allocate_hole(Bytes bytes, Block** block);
  // A block just there. failed: something lives there, or its pages cannot be had (checkpoint.cpp).
  Status allocate_at(Bytes offset, Bytes size, Bytes requested);
  void free(Block* block);

  // A live block is nobody's from now on, but no hole either: its pages stay resident (exact_bins.h).
  void keep(Block* block) {
    block->requested = kKept;
    --live_blocks_;
    ++kept_blocks_;
  }
  // A kept block is live again.
  void take(Block* block, Bytes requested) {
    block->requested = requested;
    ++live_blocks_;
    --kept_blocks_;
  }
  // A kept block becomes a hole.
  void release(Block* block) {
    take(block, 0);
    free(block);
  }

  // From now on, and before any block: only pages that are opened can be used.
  void wall_up();
  // Pages first .. end - 1, inside a wall and not at its ends, become a hole.
  void open(PageIndex first, PageIndex end);
  // Pages that were opened together, from `first` on, with no block on them, become part of the wall around them.
  void close(PageIndex first);

  // The block that starts at `offset`, or null.
  Block* at(Bytes offset) const;
  // The live block that contains `offset`, or null.
  Block* containing(Bytes offset) const;

  Bytes top() const { return top_; }
  Bytes highest() const { return highest_; }  // that top ever was
  Bytes first_offset() const { return first_offset_; }
  Block* first_block() const { return first_; }  // or hole, or wall
  // visit(offset, size, requested) for every live block, by address.
  template <typename Visit>
  void visit(Visit visit) const {
    for (const Block* block = first_; block != nullptr; block = block->next)
      if (block->in_use()) visit(block->offset, block->size, block->requested);
  }
  std::uint64_t live_blocks() const { return live_blocks_; }
  std::uint64_t kept_blocks() const { return kept_blocks_; }
  std::uint64_t holes() const { return holes_.count(); }
  Bytes metadata_bytes() const { return records_.bytes() + cohorts_.bytes() + sizeof(*this); }
  // Gives back memory of its own that no block or hole needs now.
  void shed() {
    records_.shed();
    cohorts_.shed();
    fresh_from_ = 0;
  }
  // Checks tiling, merging, the index and the owner slots; adds each live block to blocks_of.
  void validate(std::vector<std::uint32_t>& blocks_of) const;

 private:
  static constexpr int kReadyHoles = 64;   // that are searched for ready pages, the smallest first
  static constexpr std::size_t kRuns = 8;  // of ready pages, too short for a block, that may be completed for it
  static constexpr PageIndex kWideRun = 64;
  // Blocks with no free between them: from then on more are expected, and they lie side by side.
  static constexpr std::uint32_t kFilling = 8, kBurst = 16;

  Bytes end_offset() const { return residency_.pages() * kPageBytes; }
  // Where a block may go.
  struct Place {
    Block* hole = nullptr;  // null: at the top or above it
    Bytes offset = 0;
    double score = 1e300;  // lower is better
    bool fresh = false;    // beyond all pages that were ever used

    bool found() const { return score < 1e300; }
  };
  // Ready pages that are too few, with the free addresses around them.
  struct Run {
    Block* hole;
    Bytes begin, end;
  };

  Place ready_place(Bytes size);
  Place next_to_its_kind(Bytes size);
  Place row_with_room(Bytes size, Bytes row);
  Place beside_the_last(Bytes size);
  Place place_on_loan(Bytes size) const;
  // visit(hole, begin, end) for each run of ready pages in a hole, with what it has of its neighbours' pages.
  template <typename Visit>
  void visit_ready(Block* hole, Visit visit) const;
  bool ready_at(Block* hole, Bytes offset, Bytes size) const;
  Place at_end_of(Bytes end, Bytes size) const;
  // Among ready places low addresses come first. Of what is held, one fortieth as a distance weighs as much as holes
  // twice the size; while blocks grow in rows, size counts nothing.
  static constexpr Bytes kEndless = Bytes{1} << 46;  // the size of what lies above the top
  struct ReadyScore {
    double per_byte;
    bool by_size;

    double least(Bytes hole_size) const { return by_size ? std::bit_width(hole_size / kGranularity) : 0; }
    double operator()(Bytes hole_size, Bytes distance) const {
      return least(hole_size) + per_byte * static_cast<double>(distance);
    }
  };
  ReadyScore ready_score() const;
  void look_for_ready(Block* hole, Bytes size, const ReadyScore& score, Place* best) const;
  void collect_runs(Bytes size);
  void consider_ready(Block* hole, Bytes begin, Bytes end, Bytes size, const ReadyScore& score, Place* best) const;
  Place priced_place(Bytes size);
  void consider_price(Block* hole, Bytes offset, Bytes size, Place* best) const;
  Status place_at_a_price(Bytes size, Place* place);
  // Of a hole, or of the addresses from the top on.
  Bytes low_of(const Block* hole) const { return hole != nullptr ? hole->offset : top_; }
  Bytes high_of(const Block* hole) const { return hole != nullptr ? hole->end() : end_offset(); }
  Block* carve(Block* hole, Bytes offset, Bytes size);
  Block* covering(Bytes offset) const;
  Block* insert_between(Block* previous, Block* next, Bytes offset, Bytes size);
  void remove(Block* block);
  Block* take_record();

  static constexpr std::size_t kChunk = 256;

  PageTable& residency_;
  const Bytes first_offset_;
  const int candidates_;
  Bytes top_;
  Bytes highest_;
  Block* first_ = nullptr;
  Block* last_ = nullptr;
  HoleIndex<Block> holes_;
  std::vector<Run> runs_;     // of ready pages, when last collected
  PageIndex fresh_from_ = 0;  // pages before it are left free behind a wide run of fresh ones, to be completed
  Cohorts cohorts_;
  Bytes last_end_ = 0;                 // of the block placed last
  std::uint32_t placed_in_a_row_ = 0;  // with no free between them
  std::uint64_t live_blocks_ = 0;
  std::uint64_t kept_blocks_ = 0;
  RecordPool<Block, &Block::next, kChunk> records_;
};

}  // namespace poolalloc
