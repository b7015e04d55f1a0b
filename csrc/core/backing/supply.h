// What the two supplies of a device have in common: page_supply.h, and segment_supply.h for memory in whole
// allocations. Each keeps memory that lies ready for any heap. How much may be held: holdings.h.
#pragma once

#include "core/backing/holdings.h"
#include "core/base/lock.h"
#include "core/base/types.h"
#include "driver/driver.h"

namespace poolalloc {

class Supply {
 public:
  Supply(Driver& driver, DeviceIndex device, Holdings& holdings)
      : driver_(driver), device_(device), holdings_(holdings) {}
  Supply(const Supply&) = delete;
  Supply& operator=(const Supply&) = delete;

 protected:
  ~Supply() = default;

  // With the lock held.
  void tell_spare(Bytes before, Bytes now) const { holdings_.move_spare(before, now); }

  Driver& driver_;
  const DeviceIndex device_;
  Holdings& holdings_;
  mutable Lock lock_;  // of what is spare; never held across a driver call
};

}  // namespace poolalloc
