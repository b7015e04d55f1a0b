// Memory of a device that lies ready for anyone. What the memory is made of is for those who derive from this:
// page_supply.h or, where memory comes in whole allocations, segment_supply.h. How much may be held: holdings.h.
#pragma once

#include "core/holdings.h"
#include "core/lock.h"
#include "core/types.h"
#include "driver/driver.h"

namespace poolalloc {

class Supply {
 public:
  Supply(Driver& driver, DeviceIndex device, Holdings& holdings)
      : driver_(driver), device_(device), holdings_(holdings) {}
  virtual ~Supply() = default;
  Supply(const Supply&) = delete;
  Supply& operator=(const Supply&) = delete;

  // Gives so much spare memory back to the device, or a little more where it goes in larger pieces, but for what the
  // driver refuses to take. Returns the bytes.
  virtual Bytes destroy_spare(Bytes bytes) noexcept = 0;
  Bytes destroy_spare() noexcept { return destroy_spare(~Bytes{0}); }
  // Spare memory that only some requests can use goes back to the device, where it serves all. Not under a heap's lock.
  virtual void release_misfits() {}
  virtual Bytes spare_bytes() const = 0;

 protected:
  // With the lock held.
  void tell_spare(Bytes before, Bytes now) const { holdings_.move_spare(before, now); }

  Driver& driver_;
  const DeviceIndex device_;
  Holdings& holdings_;
  mutable Lock lock_;  // of what is spare; never held across a driver call
};

}  // namespace poolalloc
