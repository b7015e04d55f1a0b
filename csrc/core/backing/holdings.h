// How much of a device's memory poolalloc holds, within the limit: one account for all supplies of the device.
//
//   reserved = memory in heaps + spare memory of the supplies, and what is being asked for
#pragma once

#include <atomic>

#include "core/base/lock.h"
#include "core/base/stats.h"
#include "core/base/types.h"
#include "core/recording/observer.h"

namespace poolalloc {

class Holdings {
 public:
  explicit Holdings(DeviceIndex device = 0, const std::atomic<Observer*>* observer = nullptr)
      : device_(device), observer_(observer) {}
  Holdings(const Holdings&) = delete;
  Holdings& operator=(const Holdings&) = delete;

  void set_limit(Bytes bytes);
  Bytes limit() const;
  Counter reserved() const;
  // What may be asked for before the limit is nearly reached, which is at 15/16 of it.
  Bytes room() const;
  // Pages ever taken from the device, and given back.
  std::uint64_t created() const;
  std::uint64_t destroyed() const;
  void reset_peak();

  // Memory to be asked for is counted before it is there: several threads, one limit. False if the limit says no.
  bool claim(Bytes bytes);
  // What became of a claim.
  void settle(Bytes claimed, Bytes made);
  void count_destroyed(Bytes bytes);
  // So much of a supply was spare before, and is now.
  void move_spare(Bytes before, Bytes now);
  Bytes spare() const;

 private:
  const DeviceIndex device_;
  const std::atomic<Observer*>* const observer_;  // null: nobody asks
  mutable Lock lock_;                             // of what follows; taken after a supply's
  Counter reserved_;
  Bytes spare_ = 0;
  std::uint64_t created_ = 0;
  std::uint64_t destroyed_ = 0;
  Bytes limit_ = ~Bytes{0};
};

}  // namespace poolalloc
