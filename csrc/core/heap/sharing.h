// Memory that several processes use: what this one names to the others. What it has open of others:
// device/open_memory.h.
//
// A block is named by the pieces of physical memory under it and a number of its own. It keeps its pages as long as it
// lives, as every block does, and a piece under a live block stays where it is. When it is freed the name ends, and
// nobody can open it any more; that nobody still uses it is for the two processes to agree on before (torch counts).
// Whatever else lies in those pieces is seen too, as with memory that torch's own allocator shares.
//
// Not here: how names and file descriptors travel (plugin/ipc.h).
#pragma once

#include <cstdint>

#include "core/base/types.h"

namespace poolalloc {

struct SharedBlock {
  DeviceIndex device = 0;
  Address pages = 0;     // where the first piece of memory under the block is mapped
  Bytes bytes = 0;       // of whole pieces
  std::uint64_t id = 0;  // never the same for two blocks of a process
  Address block = 0;     // its start
};

// Physical memory of so many pages, as a file descriptor that names it to other processes.
struct SharedPiece {
  int descriptor = -1;
  std::uint32_t pages = 0;
};

}  // namespace poolalloc
