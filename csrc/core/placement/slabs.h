// Small blocks: every size class takes its blocks from slabs, runs of 32 KiB chunks cut into at most 64 equal slots.
//
// Slabs of all classes share pages, 64 chunks to a page, so a class that holds a few blocks costs a few chunks and not
// a page of its own: with a hundred classes in use that is the difference between 3 MiB and 200 MiB. A word is enough
// for the free slots of a slab and for the free chunks of a page. A class serves from its `current` slab; when that is
// full, from the partial slab with the lowest address, so that high slabs drain; new slabs go to the lowest page with
// room. A slab whose last block dies is *drowsy*: it serves the next request of its class as it is, or else stops
// keeping its page resident. Then the current one keeps its slots, asleep, and wakes up with the next request if that
// needs no driver call; any other gives its chunks back.
//
//   used + free slots = capacity        blocks on a page, for the page table = its slabs in use
//
// Guarded by the heap's lock. Not for large blocks: arena.h.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/backing/page_table.h"
#include "core/base/lazy_array.h"
#include "core/base/ordered_tree.h"
#include "core/base/record_pool.h"
#include "core/base/size_class.h"
#include "core/base/stats.h"
#include "core/base/types.h"
#include "core/placement/checkpoint.h"

namespace poolalloc {

inline constexpr Bytes kPageChunks = 64;
inline constexpr Bytes kChunkBytes = kPageBytes / kPageChunks;

// How the slabs of a class are cut. The fewest chunks that waste at most 1/64 and give eight slots (or take eight
// chunks); where nothing does, the least wasteful number of chunks.
struct SlabShape {
  std::uint8_t chunks = 0;
  std::uint8_t slots = 0;
};
inline constexpr SlabShape slab_shape(Bytes block_bytes) {
  SlabShape best;
  Bytes best_waste = ~Bytes{0};  // in 1/65536 of the slab
  for (Bytes chunks = 1; chunks <= 64; ++chunks) {
    const Bytes slots = chunks * kChunkBytes / block_bytes;
    if (slots == 0) continue;
    if (slots > 64) break;
    const Bytes waste = (chunks * kChunkBytes - slots * block_bytes) * 65536 / (chunks * kChunkBytes);
    if (waste < best_waste) {
      best = {static_cast<std::uint8_t>(chunks), static_cast<std::uint8_t>(slots)};
      best_waste = waste;
    }
    if (best_waste <= 1024 && (slots >= 8 || chunks >= 8)) break;
  }
  return best;
}

class Slabs {
 public:
  static constexpr Bytes kMaxBlock = Bytes{1} << 20;
  static constexpr int kMaxBin = bin_of(kMaxBlock);

  struct Slab {
    std::uint64_t free = 0;  // bit s: slot s is free
    Slab* left = nullptr;    // in the tree of partial slabs
    Slab* right = nullptr;
    std::uint32_t priority = 0;
    PageIndex page = 0;
    Bytes offset = 0;  // of slot 0, in the heap's range
    std::uint8_t bin = 0;
    std::uint8_t first_chunk = 0;
    bool partial = false;     // in the tree
    std::uint32_t slack[64];  // per slot: block size - requested
  };

  struct Order {
    static bool less(const Slab& a, const Slab& b) { return a.offset < b.offset; }
  };
  // A size class. What a request and a free touch stands on one cache line.
  struct alignas(64) Bin {
    Slab* current = nullptr;
    Bytes block_bytes = 0;
    std::uint64_t all_free = 0;    // Slab::free of one with no block
    std::uint64_t reciprocal = 0;  // 2^kReciprocalBits / block_bytes, rounded up
    std::uint64_t allocations = 0, frees = 0;
    Bytes requested = 0;
    SlabShape shape;
    std::uint32_t awake = 0;  // slabs in use
    std::uint32_t slabs = 0;
    OrderedTree<Slab, Order> partial;
  };

  // Slabs use pages 0 .. pages - 1.
  Slabs(PageTable& residency, PageIndex pages);
  ~Slabs();
  Slabs(const Slabs&) = delete;
  Slabs& operator=(const Slabs&) = delete;

  Bin& bin_for(Bytes bytes) {
    const int index = bin_of(bytes);
    if (index > kMaxBin) __builtin_unreachable();  // else the compiler warns of requests that bin_limit excludes
    return bins_[index];
  }
  // A block of bin.block_bytes at *offset, if the class has a slab at hand. No page changes.
  bool pop(Bin& bin, Bytes requested, Bytes* offset) {
    Slab* slab = bin.current;
    if (slab == nullptr) [[unlikely]]
      return false;
    if (slab->free == bin.all_free && !stay_awake(bin)) [[unlikely]]
      return false;
    *offset = take_slot(bin, slab, requested);
    return true;
  }
  // The same where pop found none: a slab is found or made. On any status but ok nothing has changed.
  Status pop_from_another(Bin& bin, Bytes requested, Bytes* offset);
  Status allocate(int index, Bytes requested, Bytes* offset) {
    Bin& bin = bins_[index];
    return pop(bin, requested, offset) ? Status::ok : pop_from_another(bin, requested, offset);
  }

  // A block just there, in a slab that starts just there. failed: something lives there, or its page cannot be had
  // (checkpoint.cpp).
  Status allocate_at(const PlacedBlock& block);

  // What lives at an offset.
  struct Found {
    Slab* slab = nullptr;
    std::uint32_t slot = 0;
    Bytes size = 0;  // 0: no live block starts there
    Bytes requested = 0;
  };
  Found find(Bytes offset) const {
    Found found = containing(offset);
    if (found.size != 0 && found.slab->offset + found.slot * found.size != offset) found.size = 0;
    return found;
  }
  // The live block that contains `offset`.
  Found containing(Bytes offset) const {
    Found found;
    found.slab = slab_of_[offset / kChunkBytes];
    if (found.slab == nullptr) return found;
    const Bin& bin = bins_[found.slab->bin];
    // Exact for every offset inside a slab: rounding up the reciprocal adds less than 2^(21 - 42), which is less than
    // what the last byte of a block lacks to the next, 1 / 2^20 at least.
    found.slot = static_cast<std::uint32_t>(((offset - found.slab->offset) * bin.reciprocal) >> kReciprocalBits);
    if (found.slot >= bin.shape.slots || ((found.slab->free >> found.slot) & 1) != 0) return found;
    found.size = bin.block_bytes;
    found.requested = found.size - found.slab->slack[found.slot];
    return found;
  }
  // Frees what find() found. True if that was the last block of its slab, which is drowsy now: put_to_sleep follows,
  // before anything is called here but pop.
  bool free(const Found& found) {
    Slab* slab = found.slab;
    Bin& bin = bins_[slab->bin];
    const bool was_full = slab->free == 0;
    slab->free |= std::uint64_t{1} << found.slot;
    ++bin.frees;
    bin.requested -= found.requested;
    if (slab->free == bin.all_free) {
      drowsy_ = slab;
      if (bin.current == nullptr) adopt(bin, slab);
      return true;
    }
    if (was_full) [[unlikely]]
      add_partial(bin, slab);
    return false;
  }
  // Whether there is a drowsy slab; a pop may have taken a block from it since.
  bool drowsy() const { return drowsy_ != nullptr; }
  // It stops keeping its page resident.
  void put_to_sleep() {
    Slab* slab = std::exchange(drowsy_, nullptr);
    let_go(slab);
    if (Bin& bin = bins_[slab->bin]; slab != bin.current) drop(bin, slab);
  }

  // visit(offset, size, requested) for every live block, by address.
  template <typename Visit>
  void visit(Visit visit) const {
    for (const auto& small : cut_) {
      const Slab* last = nullptr;
      for (Bytes chunk = small->page * kPageChunks; chunk < (small->page + 1) * kPageChunks; ++chunk) {
        const Slab* slab = slab_of_[chunk];
        if (slab == nullptr || slab == last) continue;
        last = slab;
        const Bin& bin = bins_[slab->bin];
        for (std::uint32_t slot = 0; slot < bin.shape.slots; ++slot)
          if (((slab->free >> slot) & 1) == 0)
            visit(slab->offset + slot * bin.block_bytes, bin.block_bytes, bin.block_bytes - slab->slack[slot]);
      }
    }
  }

  bool serves(PageIndex page) const { return page < pages_; }
  // Only bins ever used.
  std::vector<BinStats> stats() const;
  // Slabs with a block and room for more.
  std::uint32_t with_room() const;
  // Pages under at least one live block.
  std::uint32_t resident_pages() const { return resident_pages_; }
  // Pages ever used, counted from 0.
  PageIndex touched() const { return fresh_; }
  Bytes metadata_bytes() const;
  // Gives back memory of its own that no slab needs now: of tables only, or of records too.
  void shed_tables();
  void shed();
  // Adds each live slab to blocks_of its page.
  void validate(std::vector<std::uint32_t>& blocks_of) const;

 private:
  static constexpr int kReciprocalBits = 42;

  // A page cut into chunks.
  struct SmallPage {
    PageIndex page = 0;
    std::uint64_t free_chunks = ~std::uint64_t{0};
  };
  // The lowest free slot of the current slab, which has one.
  Bytes take_slot(Bin& bin, Slab* slab, Bytes requested) {
    const int slot = std::countr_zero(slab->free);
    slab->free &= slab->free - 1;
    if (slab->free == 0) bin.current = nullptr;
    slab->slack[slot] = static_cast<std::uint32_t>(bin.block_bytes - requested);
    ++bin.allocations;
    bin.requested += requested;
    return slab->offset + static_cast<Bytes>(slot) * bin.block_bytes;
  }
  // The current slab is empty; so it is drowsy, unless it sleeps. One with blocks comes first.
  bool stay_awake(const Bin& bin) {
    if (bin.current != drowsy_ || !bin.partial.empty()) return false;
    drowsy_ = nullptr;
    return true;
  }
  // The current slab sleeps. One that is resident anyway comes first; then the sleeper, if its page needs no driver
  // call.
  bool wake_current(Bin& bin) {
    return bin.partial.empty() && residency_.usable(bin.current->page) && keep_resident(bin.current) == Status::ok;
  }
  // One more slab with live blocks on its page.
  Status keep_resident(Slab* slab) {
    const Status status = residency_.acquire(slab->page, slab->page);
    if (status != Status::ok) return status;
    if (residency_.blocks(slab->page) == 1) ++resident_pages_;
    ++bins_[slab->bin].awake;
    return status;
  }
  void let_go(Slab* slab) {
    if (residency_.blocks(slab->page) == 1) --resident_pages_;
    --bins_[slab->bin].awake;
    residency_.release(slab->page, slab->page);
  }
  Status find_current(Bin& bin);
  Status new_slab(Bin& bin);
  Slab* make_slab(Bin& bin, SmallPage* small, int first_chunk);
  Slab* slab_at(Bin& bin, Bytes offset);
  SmallPage* page_with_room(std::uint8_t chunks, int* first_chunk);
  SmallPage* new_page();
  SmallPage* cut(PageIndex page);
  void add_free_page(PageIndex page);
  PageIndex take_page_index();
  [[gnu::noinline]] void adopt(Bin& bin, Slab* slab);
  [[gnu::noinline]] void drop(Bin& bin, Slab* slab);
  [[gnu::noinline]] void add_partial(Bin& bin, Slab* slab);
  void remove_partial(Bin& bin, Slab* slab);
  void retire(Slab* slab);

  PageTable& residency_;
  const PageIndex pages_;
  LazyArray<Slab*> slab_of_;  // per chunk of the range
  // What of that table has memory, in parts of one page of the host's.
  static constexpr PageIndex kPartPages = 8;
  std::vector<bool> part_used_;
  std::uint32_t used_parts_ = 0;
  PageIndex fresh_ = 0;                          // pages from here on were never used
  std::vector<PageIndex> free_pages_;            // used before, cut into nothing now; the lowest last
  std::vector<std::unique_ptr<SmallPage>> cut_;  // pages with slabs, by address
  std::vector<std::unique_ptr<SmallPage>> spare_pages_;
  std::array<Bin, kMaxBin + 1> bins_;
  RecordPool<Slab, &Slab::left, 64> records_;
  Slab* drowsy_ = nullptr;
  std::uint32_t resident_pages_ = 0;
  std::uint32_t partial_slabs_ = 0;  // in the trees of all bins
};

}  // namespace poolalloc
