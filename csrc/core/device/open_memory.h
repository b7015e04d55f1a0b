// Memory of other processes that this one has open (heap/sharing.h says how blocks are named).
#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <vector>

#include "core/base/types.h"
#include "core/heap/sharing.h"
#include "driver/driver.h"

namespace poolalloc {

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
