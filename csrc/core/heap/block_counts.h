// What a heap counts of its live blocks on every call: how many, their requested and their rounded bytes; of all blocks
// and apart for small blocks (in slabs) and large ones (all others); each with its exact peak and with all that ever
// came.
//
// A quantity keeps its peak and how far it is below that. So a block that comes or goes changes one word of its kind
// and one of all, and whether a peak is passed is the sign of the result. Guarded by the heap's lock. Not for pages or
// pending blocks: heap_stats.cpp.
#pragma once

#include "core/base/stats.h"
#include "core/base/types.h"

namespace poolalloc {

enum BlockKind { kSmall, kLarge, kBlockKinds };

class BlockCounts {
 public:
  class Quantity {
   public:
    void add(BlockKind kind, Bytes amount) {
      came_[kind] += amount;
      of_[kind].add(static_cast<std::int64_t>(amount));
      all_.add(static_cast<std::int64_t>(amount));
    }
    void subtract(BlockKind kind, Bytes amount) {
      of_[kind].below += static_cast<std::int64_t>(amount);
      all_.below += static_cast<std::int64_t>(amount);
    }
    std::int64_t current() const { return all_.current(); }
    std::int64_t current(BlockKind kind) const { return of_[kind].current(); }
    Counter counter() const { return {all_.current(), all_.peak, came_[kSmall] + came_[kLarge]}; }
    Counter counter(BlockKind kind) const { return {of_[kind].current(), of_[kind].peak, came_[kind]}; }
    void reset_peaks() {
      for (Level* level : {&all_, &of_[kSmall], &of_[kLarge]}) *level = {level->current(), 0};
    }

   private:
    struct Level {
      std::int64_t peak = 0;
      std::int64_t below = 0;

      std::int64_t current() const { return peak - below; }
      void add(std::int64_t amount) {
        below -= amount;
        if (below < 0) {
          peak -= below;
          below = 0;
        }
      }
    };

    Bytes came_[kBlockKinds] = {};
    Level of_[kBlockKinds], all_;
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
