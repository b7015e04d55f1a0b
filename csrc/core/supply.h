// How much of a device's memory is held, within the limit, and what of it lies ready for anyone. What the memory is
// made of is for those who derive from this: page_supply.h or, without virtual memory management, segment_supply.h.
//
//   reserved = memory in heaps + spare memory
#pragma once

#include <atomic>

#include "core/lock.h"
#include "core/observer.h"
#include "core/stats.h"
#include "core/types.h"
#include "driver/driver.h"

namespace poolalloc {

class Supply {
 public:
  Supply(Driver& driver, DeviceIndex device, const std::atomic<Observer*>* observer = nullptr)
      : driver_(driver), device_(device), observer_(observer) {}
  virtual ~Supply() = default;
  Supply(const Supply&) = delete;
  Supply& operator=(const Supply&) = delete;

  // Gives so much spare memory back to the device, or a little more where it goes in larger pieces, but for what the
  // driver refuses to take. Returns the bytes.
  virtual Bytes destroy_spare(Bytes bytes) = 0;
  Bytes destroy_spare() { return destroy_spare(~Bytes{0}); }
  // Spare memory that only some requests can use goes back to the device, where it serves all. Not under a heap's lock.
  virtual void release_misfits() {}
  virtual Bytes spare_bytes() const = 0;

  void set_limit(Bytes bytes);
  Bytes limit() const;
  Counter reserved() const;
  // Pages ever taken from the driver, and given back.
  std::uint64_t created() const;
  std::uint64_t destroyed() const;
  void reset_peak();

 protected:
  // Memory to be asked of the driver is counted before it is there: several threads, one limit. With the lock held.
  // False if the limit says no.
  bool claim(Bytes bytes) {
    if (static_cast<Bytes>(reserved_.current) + bytes > limit_) return false;
    reserved_.current += static_cast<std::int64_t>(bytes);
    return true;
  }
  // What became of a claim. With the lock held.
  void settle(Bytes claimed, Bytes made) {
    reserved_.current -= static_cast<std::int64_t>(claimed);
    reserved_.add(made);
    created_ += made / kPageBytes;
  }
  void count_destroyed(Bytes bytes) {
    reserved_.subtract(bytes);
    destroyed_ += bytes / kPageBytes;
  }

  // With the lock held.
  void tell_spare(Bytes before, Bytes now) const {
    if (observer_ == nullptr || before == now) return;
    if (Observer* observer = observer_->load(std::memory_order_acquire)) observer->spare_changed(device_, before, now);
  }

  Driver& driver_;
  const DeviceIndex device_;
  const std::atomic<Observer*>* const observer_;  // null: nobody asks
  mutable Lock lock_;  // of what follows and of what is spare; never held across a driver call
  Counter reserved_;
  std::uint64_t created_ = 0;
  std::uint64_t destroyed_ = 0;
  Bytes limit_ = ~Bytes{0};
};

}  // namespace poolalloc
