// Physical pages of one device: created within the limit, kept when nobody needs them, given back on request.
// One supply serves every heap of the device, small and large blocks alike; that is where most of the last percents of
// memory are (docs/design/placement.md). Not for addresses: residency.h says where a page appears.
#pragma once

#include <vector>

#include "core/supply.h"

namespace poolalloc {

class PageSupply final : public Supply {
 public:
  using Supply::Supply;

  // Appends `count` pages that no heap holds: spare ones, then new ones. On any status but ok nothing is appended:
  // out_of_memory when the limit says so, before any page is made, or the device does; pages made by then are spare.
  Status take(std::size_t count, std::vector<PhysicalHandle>* pages);
  // The page is mapped nowhere and no work touches it any more.
  void give(PhysicalHandle page);

  using Supply::destroy_spare;
  Bytes destroy_spare(Bytes bytes) override;
  Bytes spare_bytes() const override;

 private:
  std::vector<PhysicalHandle> spare_;
};

}  // namespace poolalloc
