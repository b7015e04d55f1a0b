// An allocator that a pool brings with it: where the segments of that pool come from, in place of the driver.
// It is the user's code, which may wait for any lock of the program: it is never called under one of ours.
#pragma once

#include "core/base/types.h"

namespace poolalloc {

class SegmentSource {
 public:
  virtual ~SegmentSource() = default;

  // Memory for work on the stream; 0: there is none. What it throws reaches whoever asked for a block.
  virtual Address allocate(Bytes bytes, DeviceIndex device, StreamId stream) = 0;
  // Takes back what allocate returned; no work touches it any more. False: it will not, and may be asked again.
  virtual bool free(Address address, DeviceIndex device) noexcept = 0;
};

}  // namespace poolalloc
