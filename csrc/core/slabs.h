// Small blocks: every size class takes its blocks from slabs, a slab being one page cut into equal slots.
//
// A free slot is a set bit, found through one summary word: 64 words of 64 slots cover the 4,096 slots of 512 B in a
// 2 MiB page. A class serves from its `current` slab; when that is full, from the partial slab with the lowest address,
// so that high slabs drain. A slab whose last block dies stops being resident at once: the current one keeps its slots
// and wakes up with the next request if its page is still ready, any other gives its page back.
//
//   used + free slots = capacity        resident pages = slabs with used > 0
//
// Guarded by the heap's lock. Not for large blocks: arena.h.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/ordered_tree.h"
#include "core/residency.h"
#include "core/size_class.h"
#include "core/stats.h"
#include "core/types.h"

namespace poolalloc {

class Slabs {
 public:
  static constexpr Bytes kMaxBlock = Bytes{1} << 20;
  static constexpr int kMaxBin = bin_of(kMaxBlock);

  struct Slab {
    Slab* left = nullptr;  // in the tree of partial slabs
    Slab* right = nullptr;
    std::uint32_t priority = 0;
    PageIndex page = 0;
    std::uint16_t bin = 0;
    std::uint16_t capacity = 0;
    std::uint16_t used = 0;
    bool partial = false;                    // in the tree
    std::uint64_t summary = 0;               // bit w: free[w] is not 0
    std::uint64_t free[64] = {};             // bit s of free[w]: slot 64 w + s is free
    std::unique_ptr<std::uint32_t[]> slack;  // per slot: block size - requested
  };

  // Slabs use pages 0 .. pages - 1.
  Slabs(Residency& residency, PageIndex pages) : residency_(residency), pages_(pages) {}
  ~Slabs();
  Slabs(const Slabs&) = delete;
  Slabs& operator=(const Slabs&) = delete;

  // A block of bin_bytes(bin) at *offset. On any status but ok nothing has changed.
  Status allocate(int bin, Bytes requested, Bytes* offset) {
    Bin& own = bins_[bin];
    Slab* slab = own.current;
    if (slab == nullptr || slab->used == 0) [[unlikely]] {
      const Status status = wake(own, bin);
      if (status != Status::ok) return status;
      slab = own.current;
    }
    const int word = std::countr_zero(slab->summary);
    const int bit = std::countr_zero(slab->free[word]);
    slab->free[word] &= slab->free[word] - 1;
    if (slab->free[word] == 0) slab->summary &= slab->summary - 1;
    const unsigned slot = static_cast<unsigned>(word * 64 + bit);
    if (slab->summary == 0) own.current = nullptr;
    ++slab->used;
    slab->slack[slot] = static_cast<std::uint32_t>(own.block_bytes - requested);
    ++own.live_blocks;
    ++own.allocations;
    own.requested += requested;
    *offset = slab->page * kPageBytes + slot * own.block_bytes;
    return Status::ok;
  }

  struct Freed {
    Bytes size = 0;  // 0: no live block starts at the offset
    Bytes requested = 0;
  };
  // What lives at `offset` of `page`, without freeing it.
  Freed find(PageIndex page, Bytes offset) const {
    const Slab* slab = residency_.owner<Slab>(page);
    if (slab == nullptr) return {};
    const Bytes block_bytes = bins_[slab->bin].block_bytes;
    const Bytes within = offset - page * kPageBytes;
    const Bytes slot = within / block_bytes;
    if (slot * block_bytes != within || slot >= slab->capacity) return {};
    if ((slab->free[slot / 64] >> (slot % 64)) & 1) return {};
    return {block_bytes, block_bytes - slab->slack[slot]};
  }
  // Frees what find() found there.
  void free(PageIndex page, Bytes offset);
  // The start of the block that contains `offset`, or of nothing: size 0.
  Freed containing(Bytes offset, Bytes* start) const;

  bool serves(PageIndex page) const { return page < pages_; }
  std::vector<BinStats> stats() const;
  // Pages ever used, counted from 0.
  PageIndex touched() const { return fresh_; }
  Bytes metadata_bytes() const;
  // Adds each live slab's page to blocks_of.
  void validate(std::vector<std::uint32_t>& blocks_of) const;

 private:
  struct Order {
    static bool less(const Slab& a, const Slab& b) { return a.page < b.page; }
  };
  struct Bin {
    Slab* current = nullptr;
    Bytes block_bytes = 0;  // 0: never used
    std::uint64_t live_blocks = 0;
    std::uint64_t allocations = 0;
    Bytes requested = 0;
    std::uint32_t slabs = 0;  // with a page
    std::uint32_t awake = 0;  // of them, with used > 0
    OrderedTree<Slab, Order> partial;
  };

  Status wake(Bin& bin, int index);
  Status new_slab(Bin& bin, int index);
  PageIndex take_page();
  void retire(Bin& bin, Slab* slab);
  void fill(Slab* slab);

  Residency& residency_;
  const PageIndex pages_;
  PageIndex fresh_ = 0;                // pages from here on were never used
  std::vector<PageIndex> free_pages_;  // used before, without a slab now
  std::array<Bin, kMaxBin + 1> bins_;
  std::vector<std::unique_ptr<Slab>> unused_;
  std::size_t slabs_ = 0;
  Bytes slack_bytes_ = 0;
};

}  // namespace poolalloc
