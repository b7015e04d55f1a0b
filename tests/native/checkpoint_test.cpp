// A private pool and its way back: which blocks are live after it, what lies under them, and what was never touched.
#include "core/placement/checkpoint.h"

#include <algorithm>
#include <map>
#include <random>

#include "core/allocator.h"
#include "core_rig.h"

using namespace rig;

namespace {

constexpr Bytes kMiB = 1 << 20;
constexpr PoolId kPool{1, 0};
constexpr StreamId kStream = 7;
constexpr StreamId kOther = 9;

struct PoolRig {
  explicit PoolRig(std::uint64_t pages = 256, std::uint64_t lag = 0)
      : model(device_of(pages, lag)), allocator(model, Options{}) {
    allocator.retain_pool(0, kPool);
  }
  ~PoolRig() { check(); }

  void record(const std::function<void()>& body) {
    allocator.begin_allocate_to_pool(0, kPool, [](StreamId) { return true; });
    body();
    allocator.end_allocate_to_pool(0, kPool);
    allocator.release_pool(0, kPool);
  }
  Address take(Bytes bytes, StreamId stream = kStream) { return allocator.allocate(bytes, 0, stream); }
  std::vector<PhysicalHandle> under(Address address) const {
    std::vector<PhysicalHandle> handles;
    const auto block = allocator.block(address);
    CHECK(block.has_value());
    for (Address at = block->address; at < block->address + block->rounded; at = (at / kPage + 1) * kPage) {
      PhysicalHandle handle = 0;
      Bytes offset = 0;
      CHECK(model.physical(0, at, &handle, &offset));
      handles.push_back(handle);
    }
    return handles;
  }
  std::map<Address, Bytes> live() const {
    std::map<Address, Bytes> blocks;
    for (const BlockInfo& block : allocator.blocks(0, kPool))
      if (!block.pending) blocks[block.address] = block.requested;
    return blocks;
  }
  std::uint64_t driver_calls() const {
    std::uint64_t sum = 0;
    for (const auto& [kind, count] : allocator.stats(0).driver_calls)
      if (kind == "map" || kind == "unmap" || kind == "create" || kind == "allow_access") sum += count;
    return sum;
  }
  void check() const {
    allocator.validate();
    CHECK(model.violations() == 0);
  }

  ModelDriver model;
  Allocator allocator;
};

std::vector<Address> sorted(std::vector<Address> list) {
  std::sort(list.begin(), list.end());
  return list;
}

}  // namespace

TEST_CASE("blocks are back at their addresses and later ones are gone") {
  PoolRig rig;
  Address small = 0, large = 0, huge = 0, later = 0;
  rig.record([&] {
    const Address before = rig.take(3 * kMiB);
    small = rig.take(5000);
    large = rig.take(7 * kMiB + 1000);
    const Address between = rig.take(kMiB);
    huge = rig.take(40 * kMiB);
    rig.allocator.free(before);
    rig.allocator.free(between);
  });
  const auto then = rig.live();
  const auto frames = rig.under(huge);
  const PoolCheckpoint checkpoint = rig.allocator.checkpoint(0, kPool);
  rig.allocator.free(small);
  rig.allocator.free(huge);
  rig.record([&] { later = rig.take(9 * kMiB); });
  const std::uint64_t calls = rig.driver_calls();
  const CheckpointDelta delta = rig.allocator.restore(checkpoint);
  CHECK(rig.driver_calls() == calls);
  CHECK(sorted(delta.freed) == sorted({large, later}));
  CHECK(sorted(delta.allocated) == sorted({small, large, huge}));
  CHECK(rig.live() == then);
  CHECK(rig.under(huge) == frames);
  rig.check();
  for (Address block : delta.allocated) rig.allocator.free(block);
  CHECK(rig.live().empty());
}

// A graph's replay writes through the addresses it was recorded with: every frame must be where it was.
TEST_CASE("whatever was recorded in between the frames are the same") {
  for (unsigned seed = 0; seed < 40; ++seed) {
    PoolRig rig(2048);
    std::mt19937 random(seed);
    std::vector<Address> held;
    const auto churn = [&](int steps) {
      rig.record([&] {
        for (int step = 0; step < steps; ++step) {
          if (!held.empty() && random() % 5 < 2) {
            std::swap(held[random() % held.size()], held.back());
            rig.allocator.free(held.back());
            held.pop_back();
          } else {
            const Bytes scale = Bytes{512} << random() % 16;
            held.push_back(rig.take(1 + random() % scale, random() % 4 == 0 ? kOther : kStream));
          }
        }
      });
    };
    struct Moment {
      PoolCheckpoint checkpoint;
      std::map<Address, Bytes> live;
      std::map<Address, std::vector<PhysicalHandle>> frames;
    };
    std::vector<Moment> moments;
    for (int round = 0; round < 6; ++round) {
      churn(60);
      Moment moment{rig.allocator.checkpoint(0, kPool), rig.live(), {}};
      for (const auto& [address, size] : moment.live) moment.frames[address] = rig.under(address);
      moments.push_back(std::move(moment));
    }
    for (int round = 0; round < 12; ++round) {
      const Moment& moment = moments[random() % moments.size()];
      const std::uint64_t calls = rig.driver_calls();
      const CheckpointDelta delta = rig.allocator.restore(moment.checkpoint);
      CHECK(rig.driver_calls() == calls);
      CHECK(rig.live() == moment.live);
      for (const auto& [address, frames] : moment.frames) CHECK(rig.under(address) == frames);
      rig.check();
      held = delta.allocated;
      CHECK(held.size() == moment.live.size());
      churn(30);
      rig.check();
    }
  }
}

TEST_CASE("statistics count what came back") {
  PoolRig rig;
  Address block = 0;
  rig.record([&] { block = rig.take(5 * kMiB); });
  const PoolCheckpoint checkpoint = rig.allocator.checkpoint(0, kPool);
  const DeviceStats then = rig.allocator.stats(0);
  rig.allocator.free(block);
  CHECK(rig.allocator.stats(0).live.current == 0);
  rig.allocator.restore(checkpoint);
  const DeviceStats now = rig.allocator.stats(0);
  CHECK((now.live.current == then.live.current && now.requested.current == then.requested.current));
  CHECK((now.reserved.current == then.reserved.current && now.live_blocks == 1));
  CHECK(now.all.blocks.total == 2);
}

TEST_CASE("blocks that wait for a stream are waited for") {
  PoolRig rig(256, 50);
  Address block = 0;
  rig.record([&] {
    block = rig.take(5 * kMiB);
    rig.take(kMiB);
  });
  rig.allocator.record_stream(block, {0, kOther});
  rig.allocator.free(block);
  CHECK(rig.allocator.stats(0).pending.current != 0);
  const PoolCheckpoint checkpoint = rig.allocator.checkpoint(0, kPool);
  CHECK(rig.allocator.stats(0).pending.current == 0);
  CHECK(rig.live().size() == 1);
  rig.record([&] {
    block = rig.take(5 * kMiB);
    rig.allocator.record_stream(block, {0, kOther});
    rig.allocator.free(block);
    rig.allocator.begin_capture(0);
    CHECK_THROWS_AS(rig.allocator.checkpoint(0, kPool), UsageError);  // a thread that captures does not wait
    rig.allocator.end_capture(0);
  });
  rig.allocator.restore(checkpoint);
  CHECK(rig.allocator.stats(0).pending.current == 0);
  CHECK(rig.live().size() == 1);
}

TEST_CASE("a stream that came later is empty again") {
  PoolRig rig;
  rig.record([&] { rig.take(kMiB); });
  const PoolCheckpoint checkpoint = rig.allocator.checkpoint(0, kPool);
  Address later = 0;
  rig.record([&] { later = rig.take(2 * kMiB, kOther); });
  CHECK(rig.allocator.restore(checkpoint).freed.size() == 2);
  CHECK((rig.live().size() == 1 && !rig.allocator.block(later).has_value()));
}

TEST_CASE("only a pool in use has a checkpoint") {
  PoolRig rig;
  CHECK_THROWS_AS(rig.allocator.checkpoint(0, PoolId{5, 5}), UsageError);
  Address block = 0;
  rig.record([&] { block = rig.take(kMiB); });
  const PoolCheckpoint checkpoint = rig.allocator.checkpoint(0, kPool);
  rig.allocator.release_pool(0, kPool);
  CHECK_THROWS_AS(rig.allocator.checkpoint(0, kPool), UsageError);
  CHECK_THROWS_AS(rig.allocator.restore(checkpoint), UsageError);
  CHECK(rig.allocator.block(block).has_value());
}
