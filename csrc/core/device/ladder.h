// What a request goes through when its heap has neither memory nor addresses for it: rung by rung, each of which makes
// some room and tries again. One object is one request.
//
//   unmapping   only where addresses are missing: mappings in the way, among the heap's own
//   releasing   blocks that exact bins keep, here and on other streams whose work has completed
//   stealing    idle pages of other streams whose work has completed
//   callbacks   the user's, which may free blocks (oom_callbacks.h)
//   waiting     pending frees and other streams' idle pages, waited for
//   trimming    everything idle goes back to the device, and the driver is asked again
//   lending     idle pages of private pools that are in use and whose owners lend them
//
// Idle pages of the heap itself, pending frees that have completed, and new pages within the limit come before all
// these: that is Heap::allocate. Not for giving memory back without need: DeviceHeap::trim.
#pragma once

#include <mutex>

#include "core/device/device_heap.h"

namespace poolalloc {

class Ladder {
 public:
  Ladder(DeviceHeap& device, Heap& heap, Bytes bytes) : device_(device), heap_(heap), bytes_(bytes) {}
  Ladder(const Ladder&) = delete;
  Ladder& operator=(const Ladder&) = delete;

  // The block's address; `status` is what Heap::allocate said. Throws OutOfMemory, DriverError.
  Address climb(Status status);

 private:
  bool unmap_own();
  bool release_kept();
  bool steal();
  bool call_back();
  bool wait();
  bool trim();
  bool borrow();
  bool take(Heap& other, Wait wait);
  bool try_again();
  void return_to_sources();
  Address served_after(LadderRung rung);
  bool is_short(Bytes free_bytes, Bytes total_bytes) const;
  [[noreturn]] void raise();

  DeviceHeap& device_;
  Heap& heap_;
  const Bytes bytes_;
  Status status_ = Status::out_of_memory;
  Address address_ = 0;
  bool gained_ = false;       // since the last look: somebody else may have had it
  bool called_back_ = false;  // callbacks are asked once a request
  std::unique_lock<Lock> turn_;
};

}  // namespace poolalloc
