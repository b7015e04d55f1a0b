// Memory that several processes use: what one of them names to the others, and what this one has open of others.
//
// A block is named by the pieces of physical memory under it and a number of its own. It keeps its pages as long as it
// lives, as every block does, and a piece under a live block stays where it is. When it is freed the name ends, and
// nobody can open it any more; that nobody still uses it is for the two processes to agree on before (torch counts).
// Whatever else lies in those pieces is seen too, as with memory that torch's own allocator shares.
//
// Not here: how names and file descriptors travel (plugin/ipc.h).
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "core/types.h"
#include "driver/driver.h"

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

struct DeviceShared;

// What a device has open of other processes. It is their memory: no figure of this process counts it.
class OpenMemory {
 public:
  explicit OpenMemory(DeviceShared& shared) : shared_(shared) {}
  ~OpenMemory();
  OpenMemory(const OpenMemory&) = delete;
  OpenMemory& operator=(const OpenMemory&) = delete;

  // So many pages at neighbouring addresses; `piece_at(page)` gives the piece that starts there when it is its turn,
  // and may throw. Throws DriverError.
  Address open(std::size_t pages, const std::function<SharedPiece(std::size_t)>& piece_at);
  // Waits for the device, since work may still come through the mappings; during a capture that must wait, and is done
  // with a later call.
  void close(Address address);

 private:
  struct Range {
    Address address = 0;
    Bytes bytes = 0;
    bool closing = false;
  };

  void close_what_is_closing();
  bool drop(const NoCapture& token, const Range& range, Bytes mapped);

  DeviceShared& shared_;
  std::mutex mutex_;
  std::vector<Range> ranges_;
};

}  // namespace poolalloc
