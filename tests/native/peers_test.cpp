// Which devices have access to the memory of another: those it was allowed for, and not their peers in turn.
#include "core/allocator.h"
#include "core_rig.h"

using namespace rig;

namespace {

constexpr DeviceSet set_of(DeviceIndex device) { return DeviceSet{1} << device; }

ModelOptions three_devices() {
  ModelOptions options = device_of(64);
  options.devices = 3;
  return options;
}

TEST_CASE("access is for the peers of a device and not for theirs") {
  ModelDriver model(three_devices());
  Allocator allocator(model, Options{});
  Address before[3], after[3];
  for (DeviceIndex device = 0; device < 3; ++device) before[device] = allocator.allocate(3 * kPage, device, 0);
  allocator.allow_peer(1, 2);  // memory of 1, for work on 2
  allocator.allow_peer(0, 1);
  for (DeviceIndex device = 0; device < 3; ++device) after[device] = allocator.allocate(5 * kPage, device, 0);
  const DeviceSet expected[] = {set_of(1), set_of(2), 0};
  for (DeviceIndex device = 0; device < 3; ++device) {
    CHECK(model.peers(device, before[device]) == expected[device]);
    CHECK(model.peers(device, after[device]) == expected[device]);
  }
  CHECK(model.violations() == 0);
}

TEST_CASE("all peers get access in one call") {
  ModelDriver model(three_devices());
  Allocator allocator(model, Options{});
  allocator.allow_peer(0, 1);
  allocator.allow_peer(0, 2);
  const Address block = allocator.allocate(4 * kPage, 0, 0);
  CHECK(model.peers(0, block) == (set_of(1) | set_of(2)));
  CHECK(allocator.stats(0).driver_calls["allow_access"] == 1);
}

TEST_CASE("a peer that was refused is not asked for again") {
  ModelDriver model(three_devices());
  Allocator allocator(model, Options{});
  allocator.allocate(4 * kPage, 0, 0);
  model.fail(DriverCall::allow_access, 1, Status::failed);
  CHECK_THROWS_AS(allocator.allow_peer(0, 1), DriverError);
  CHECK(model.peers(0, allocator.allocate(4 * kPage, 0, 0)) == 0);
}

}  // namespace
