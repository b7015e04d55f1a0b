// The live blocks of a private pool at one moment, and bringing the pool back to them. torch.compile's graph trees need
// it: a graph is recorded on top of what an earlier one left, and later another one is, on top of the same.
//
// Blocks that are live now and were live then are not touched, so what they hold stays. The others are freed, and those
// that are missing are placed again at their addresses. A pool that a graph may replay into never loses a mapping, so
// this needs no driver call, and what a graph wrote behind an address is there again.
//
// Here are the plain types. Arena and Slabs put one block back, Heap all of its own, DeviceHeap those of a pool.
#pragma once

#include <vector>

#include "core/base/types.h"

namespace poolalloc {

// A block and where it lies in its heap's range.
struct PlacedBlock {
  Bytes offset = 0;
  Bytes size = 0;
  Bytes requested = 0;
  Bytes slab = 0;  // where its slab starts; its own offset in the arena

  friend bool operator==(const PlacedBlock&, const PlacedBlock&) = default;
};

struct PoolCheckpoint {
  struct OfHeap {
    StreamId stream = 0;
    Address base = 0;  // of the heap's range
    std::vector<PlacedBlock> blocks;
  };
  DeviceIndex device = 0;
  PoolId pool;
  std::vector<OfHeap> heaps;
};

// What bringing a pool back did, as torch wants to know it: blocks that stayed live are in both.
struct CheckpointDelta {
  std::vector<Address> freed;      // live before
  std::vector<Address> allocated;  // live after
};

}  // namespace poolalloc
