// What the tests of core's parts share: a small modelled device with counted calls, and views of what lies under its
// addresses.
#pragma once

#include <doctest/doctest.h>

#include <string_view>
#include <utility>

#include "core/backing/page_supply.h"
#include "core/backing/residency.h"
#include "core/base/errors.h"
#include "driver/counting_driver.h"
#include "driver/model_driver.h"
#include "growing.h"

namespace rig {

using namespace poolalloc;

inline constexpr Bytes kPage = kPageBytes;

inline ModelOptions device_of(std::uint64_t pages, std::uint64_t event_lag = 0) {
  ModelOptions options;
  options.memory_bytes = pages * kPage;
  options.event_lag = event_lag;
  return options;
}

inline std::uint64_t mapping_calls(const CountingDriver& driver) {
  return driver.calls(DriverCall::create) + driver.calls(DriverCall::map) + driver.calls(DriverCall::allow_access) +
         driver.calls(DriverCall::unmap) + driver.calls(DriverCall::destroy);
}

// What the caller's wait stands between.
inline std::uint32_t leave(Residency& residency, Residency::Detached& detached) {
  residency.unmap_detached(&detached);
  return residency.return_detached(detached);
}

// A device, and a range of addresses on it with a residency over them.
struct Range {
  Range(std::uint64_t device_pages, PageIndex split, PageIndex pages, std::string_view growth = "tight")
      : model(device_of(device_pages)),
        driver(model),
        supply(driver, 0, holdings),
        residency(driver, 0, supply, reserve(pages * kPage), split, pages, growing(growth)) {}

  Address reserve(Bytes bytes) {
    Address address = 0;
    CHECK(driver.reserve(0, bytes, kPage, &address) == Status::ok);
    return address;
  }
  // The physical page under a page of the range: which of the pages of which handle. {0, 0} if there is none.
  std::pair<PhysicalHandle, Bytes> memory_under(PageIndex page) const {
    PhysicalHandle handle = 0;
    Bytes offset = 0;
    if (!model.physical(0, residency.address_of(page), &handle, &offset)) return {0, 0};
    return {handle, offset / kPage};
  }
  PhysicalHandle under(PageIndex page) const { return memory_under(page).first; }
  Bytes held() const { return static_cast<Bytes>(residency.held().current); }
  Bytes resident() const { return static_cast<Bytes>(residency.resident().current); }
  // reserved = held + spare, and the device agrees.
  void check_accounts() const {
    CHECK(model.violations() == 0);
    CHECK(static_cast<Bytes>(holdings.reserved().current) == model.used_bytes(0));
    CHECK(model.used_bytes(0) == held() + supply.spare_bytes());
    CHECK(held() >= resident() + residency.idle_frames() * kPage);
  }

  ModelDriver model;
  CountingDriver driver;
  Holdings holdings;
  PageSupply supply;
  Residency residency;
};

}  // namespace rig
