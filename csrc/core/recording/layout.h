// Where everything lies at one moment: the pages of every heap, each counted once, and the blocks on them. For
// snapshots; figures alone are in stats.h.
//
//   reserved = bytes of all pages + spare      every block lies on pages that count and are not idle
#pragma once

#include <vector>

#include "core/base/types.h"
#include "core/recording/observer.h"

namespace poolalloc {

// Neighbouring pages that are alike. A physical page counts at the address where a block used it last (observer.h).
struct PageRun {
  Address address = 0;
  Bytes bytes = 0;
  bool small = false;  // cut into size classes now
  bool idle = false;   // no block overlaps them
  bool apart = false;  // not one with what lies before: a segment starts here
};

struct HeapLayout {
  HeapId heap;
  bool segmented = false;         // memory comes in whole allocations
  std::vector<PageRun> pages;     // by address
  std::vector<BlockInfo> blocks;  // that cannot be handed out now, by address
};

struct DeviceLayout {
  std::vector<HeapLayout> heaps;
  Bytes spare = 0;  // pages held that no heap has
};

}  // namespace poolalloc
