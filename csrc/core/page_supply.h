// Physical pages of one device: created within a limit, kept when nobody needs them, given back on request.
// One supply serves every heap of the device, small and large blocks alike; that is where most of the last percents of
// memory are (docs/design/placement.md). Not for addresses: residency.h says where a page appears.
//
//   reserved = pages in heaps + spare pages
#pragma once

#include <vector>

#include "core/lock.h"
#include "core/stats.h"
#include "core/types.h"
#include "driver/driver.h"

namespace poolalloc {

class PageSupply {
 public:
  PageSupply(Driver& driver, DeviceIndex device) : driver_(driver), device_(device) {}
  PageSupply(const PageSupply&) = delete;
  PageSupply& operator=(const PageSupply&) = delete;

  // Appends `count` pages that no heap holds: spare ones, then new ones. On any status but ok nothing is appended:
  // out_of_memory when the limit says so, before any page is made, or the device does; pages made by then are spare.
  Status take(std::size_t count, std::vector<PhysicalHandle>* pages);
  // The page is mapped nowhere and no work touches it any more.
  void give(PhysicalHandle page);
  // Destroys spare pages, so many bytes of them at most, but for those that the driver refuses to destroy. Returns the
  // bytes.
  Bytes destroy_spare(Bytes at_most = ~Bytes{0});

  void set_limit(Bytes bytes);
  Bytes limit() const;
  Bytes spare_bytes() const;
  Counter reserved() const;
  std::uint64_t created() const;
  std::uint64_t destroyed() const;
  void reset_peak();

 private:
  Driver& driver_;
  const DeviceIndex device_;
  mutable Lock lock_;  // never held across a driver call
  std::vector<PhysicalHandle> spare_;
  Counter reserved_;
  std::uint64_t created_ = 0;
  std::uint64_t destroyed_ = 0;
  Bytes limit_ = ~Bytes{0};
};

}  // namespace poolalloc
