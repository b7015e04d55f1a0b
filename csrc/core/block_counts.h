// What a heap counts of its live blocks on every call: how many, their requested and their rounded bytes; of all blocks
// and apart for small and large ones; each with its exact peak and with all that ever came.
//
// A quantity keeps what came and what went. So a block that goes changes one word of its kind and one of all, and only
// one that comes can raise a peak. Guarded by the heap's lock. Not for pages or pending blocks: heap_stats.cpp.
#pragma once

#include "core/stats.h"
#include "core/types.h"

namespace poolalloc {

enum BlockKind { kSmall, kLarge, kBlockKinds };
inline constexpr BlockKind kind_of(Bytes rounded) { return rounded > kSmallBytes ? kLarge : kSmall; }

class BlockCounts {
 public:
  class Quantity {
   public:
    void add(BlockKind kind, Bytes amount) {
      came_[kind] += amount;
      raise(peak_[kind], current(kind));
      all_ += static_cast<std::int64_t>(amount);
      raise(all_peak_, all_);
    }
    void subtract(BlockKind kind, Bytes amount) {
      went_[kind] += amount;
      all_ -= static_cast<std::int64_t>(amount);
    }
    std::int64_t current() const { return all_; }
    std::int64_t current(BlockKind kind) const { return static_cast<std::int64_t>(came_[kind] - went_[kind]); }
    Counter counter() const { return {all_, all_peak_, came_[kSmall] + came_[kLarge]}; }
    Counter counter(BlockKind kind) const { return {current(kind), peak_[kind], came_[kind]}; }
    void reset_peaks() {
      all_peak_ = all_;
      for (const BlockKind kind : {kSmall, kLarge}) peak_[kind] = current(kind);
    }

   private:
    static void raise(std::int64_t& peak, std::int64_t now) {
      if (now > peak) peak = now;
    }

    Bytes came_[kBlockKinds] = {}, went_[kBlockKinds] = {};
    std::int64_t peak_[kBlockKinds] = {};
    std::int64_t all_ = 0, all_peak_ = 0;
  };

  void add(BlockKind kind, Bytes asked, Bytes rounded) {
    blocks.add(kind, 1);
    requested.add(kind, asked);
    live.add(kind, rounded);
  }
  void subtract(BlockKind kind, Bytes asked, Bytes rounded) {
    blocks.subtract(kind, 1);
    requested.subtract(kind, asked);
    live.subtract(kind, rounded);
  }
  void reset_peaks() {
    for (Quantity* quantity : {&blocks, &requested, &live}) quantity->reset_peaks();
  }

  Quantity blocks, requested, live;
};

}  // namespace poolalloc
