// Exact bins: of sizes that a configuration names, blocks that were freed stay with their heap for its next requests of
// just that size.
//
// A *kept* block lies in the arena like a live one, and its pages stay resident, but nobody has it. So a request that
// finds one costs a lookup and a pop, and a free a lookup and a push: no search, no page, no driver call, whatever the
// rest of the heap does. The one kept last is handed out first; those kept for longest are released first, which makes
// holes of them again. A bin has two bounds: it keeps `keep` blocks at most; those beyond `preallocate` are its
// *surplus*, which goes before the heap grows, and the others stay until memory runs out.
//
//   kept blocks of a bin <= its keep      kept = sum over bins of size x blocks
//
// Only which blocks are kept is decided here. When they are taken, made ahead and released, and what the heap counts,
// is in heap_kept.cpp; when the heaps of a device have to release theirs, in ladder.h and device_heap.cpp. Guarded by
// the heap's lock.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/options/options.h"
#include "core/placement/arena.h"

namespace poolalloc {

class ExactBins {
 public:
  struct Bin {
    struct Kept {
      Arena::Block* block;
      std::uint64_t number;  // of all that this object ever kept
    };
    Bytes size = 0;  // a multiple of kGranularity
    std::size_t preallocate = 0, keep = 0;
    std::uint32_t index = 0;   // among the bins of the configuration
    std::vector<Kept> blocks;  // by number
  };

  ExactBins(Arena& arena, const std::vector<ExactBin>& bins);
  ExactBins(const ExactBins&) = delete;
  ExactBins& operator=(const ExactBins&) = delete;

  // The bin for blocks of this size, a multiple of kGranularity; null if there is none.
  Bin* find(Bytes size) const {
    for (std::size_t slot = slot_of(size);; slot = (slot + 1) % kSlots)
      if (Bin* bin = slots_[slot]; bin == nullptr || bin->size == size) return bin;
  }
  bool has_room(const Bin& bin) const { return bin.blocks.size() < bin.keep; }
  // A block of the bin, which has room, live until now.
  void keep(Bin& bin, Arena::Block* block) {
    bin.blocks.push_back({block, ++last_number_});
    arena_.keep(block);
    ++blocks_;
    surplus_ += bin.blocks.size() > bin.preallocate;
  }
  // Live from now on. The bin is not empty.
  Arena::Block* take(Bin& bin, Bytes requested) {
    Arena::Block* block = bin.blocks.back().block;
    surplus_ -= bin.blocks.size() > bin.preallocate;
    bin.blocks.pop_back();
    arena_.take(block, requested);
    --blocks_;
    return block;
  }
  enum class Which { all, surplus };
  // Of all bins, blocks become holes: first those kept for longest, until that makes so many bytes, or there are no
  // more up to this number. Returns the bytes.
  Bytes release(Bytes bytes, Which which, std::uint64_t up_to = ~std::uint64_t{0});

  std::uint64_t last_number() const { return last_number_; }
  std::uint64_t blocks() const { return blocks_; }
  std::uint64_t surplus() const { return surplus_; }    // of them
  std::uint64_t released() const { return released_; }  // blocks, ever
  Bytes bytes() const;
  Bytes metadata_bytes() const;
  void validate() const;

 private:
  static constexpr std::size_t kSlots = 4 * ExactBin::kMostBins;
  static std::size_t slot_of(Bytes size) {
    return static_cast<std::size_t>((size / kGranularity * 0x9e3779b97f4a7c15) >> 32) % kSlots;
  }
  Bin* with_oldest(Which which);

  Arena& arena_;
  std::vector<Bin> bins_;
  std::array<Bin*, kSlots> slots_{};  // open addressing
  std::uint64_t last_number_ = 0, blocks_ = 0, surplus_ = 0, released_ = 0;
};

}  // namespace poolalloc
