// What is counted of blocks, for all sizes and apart for small and large ones, against a list kept beside.
#include <algorithm>
#include <map>
#include <random>

#include "core/allocator.h"
#include "core/heap/heap.h"
#include "core_rig.h"

using namespace rig;

namespace {

struct Kept {
  Bytes requested, rounded;
  bool recorded;
};

// The figures of one kind, counted in the most simple way.
struct Expected {
  Counter blocks, requested, live, held_blocks, held;
  void add(const Kept& block) {
    blocks.add(1), requested.add(block.requested), live.add(block.rounded);
    held_blocks.add(1), held.add(block.rounded);
  }
  void free(const Kept& block) {
    blocks.subtract(1), requested.subtract(block.requested), live.subtract(block.rounded);
  }
  void finish(const Kept& block) { held_blocks.subtract(1), held.subtract(block.rounded); }
  void reset_peaks() {
    for (Counter* counter : {&blocks, &requested, &live, &held_blocks, &held}) counter->reset_peak();
  }
};

bool same(const Counter& a, const Counter& b) {
  return a.current == b.current && a.peak == b.peak && a.total == b.total;
}

void compare(const BlockStats& stats, const Expected& expected) {
  CHECK(same(stats.blocks, expected.blocks));
  CHECK(same(stats.requested, expected.requested));
  CHECK(same(stats.live, expected.live));
  CHECK(same(stats.held_blocks, expected.held_blocks));
  CHECK(same(stats.held, expected.held));
}

TEST_CASE("blocks are counted by size") {
  ModelDriver model(device_of(512, 3));
  CountingDriver driver(model);
  AddressTable addresses;
  CaptureGate gate(driver);
  DeviceShared shared(driver, 0, addresses, gate);
  Address base = 0;
  CHECK(driver.reserve(0, 2048 * kPage, kPage, &base) == Status::ok);
  Heap heap(shared, 1, PoolId{}, base, 512 * kPage, 1536 * kPage, Options{});

  std::mt19937_64 random(7);
  std::map<Address, Kept> live, pending;
  Expected all, kinds[2];
  std::int64_t unused_peak = 0;
  const auto kind = [&](const Kept& block) -> Expected& { return kinds[block.requested > Options{}.bin_limit]; };
  const auto collect_finished = [&] {
    for (auto entry = pending.begin(); entry != pending.end();) {
      const auto found = heap.block(entry->first);
      if (found && found->pending) {
        CHECK(found->rounded == entry->second.rounded);
        ++entry;
        continue;
      }
      all.finish(entry->second), kind(entry->second).finish(entry->second);
      entry = pending.erase(entry);
    }
  };
  for (int step = 0; step < 20000; ++step) {
    if (live.size() < 200 && random() % 5 < 3) {
      const int shape = static_cast<int>(random() % 8);
      const Bytes bytes = shape < 5   ? 1 + random() % (64 << 10)
                          : shape < 7 ? 1 + random() % (2 << 20)
                                      : 1 + random() % (8 << 20);
      Address address = 0;
      const Status status = heap.allocate(bytes, &address);
      collect_finished();
      if (status != Status::ok) continue;
      const auto found = heap.block(address);
      CHECK((found && found->address == address && found->requested == bytes && found->rounded >= bytes));
      const Kept block{bytes, found->rounded, random() % 6 == 0};
      all.add(block), kind(block).add(block);
      if (block.recorded) CHECK(heap.record_stream(address, {0, 2}));
      live.emplace(address, block);
    } else if (!live.empty()) {
      auto entry = live.begin();
      std::advance(entry, random() % live.size());
      const auto [address, block] = *entry;
      live.erase(entry);
      CHECK(heap.free(address));
      all.free(block), kind(block).free(block);
      if (block.recorded)
        pending.emplace(address, block);
      else
        all.finish(block), kind(block).finish(block);
      collect_finished();  // a large one looks
    }
    if (random() % 64 == 0) model.advance(1);
    if (random() % 256 == 0) {
      heap.poll_pending();
      collect_finished();
    }
    if (random() % 4096 == 0) {
      heap.reset_peaks();
      all.reset_peaks(), kinds[0].reset_peaks(), kinds[1].reset_peaks();
      unused_peak = 0;
    }
    const HeapStats stats = heap.stats();
    compare(stats.all, all);
    compare(stats.small, kinds[0]);
    compare(stats.large, kinds[1]);
    const std::int64_t unused = stats.resident.current - stats.live.current - stats.pending.current;
    unused_peak = std::max(unused_peak, unused);
    CHECK((stats.all.unused.current == unused && stats.all.unused.peak >= unused_peak));
    CHECK(stats.small.unused.current + stats.large.unused.current == unused);
    CHECK((stats.small.unused.current >= 0 && stats.large.unused.current >= 0));
    for (const BlockStats* one : {&stats.all, &stats.small, &stats.large}) {
      CHECK(one->unused.total >= static_cast<Bytes>(one->unused.current));
      CHECK(one->reserved.peak >= one->reserved.current);
      CHECK(one->reserved.total >= static_cast<Bytes>(one->reserved.current));
    }
    CHECK(stats.small.reserved.current + stats.large.reserved.current == stats.reserved.current);
    if (step % 500 == 0) {
      heap.validate();
      std::vector<BlockInfo> blocks;
      heap.append_blocks(blocks);
      CHECK(blocks.size() == live.size() + pending.size());
      for (const BlockInfo& block : blocks) {
        const auto& list = block.pending ? pending : live;
        const auto entry = list.find(block.address);
        CHECK((entry != list.end() && entry->second.rounded == block.rounded));
        CHECK((entry->second.requested == block.requested && block.stream == 1 && block.device == 0));
      }
    }
  }
  CHECK((all.blocks.peak > 0 && kinds[0].held.peak > kinds[0].live.peak && kinds[1].blocks.total > 100));
  heap.retire();
  shared.destroy_spare();
}

TEST_CASE("gaps are slabs with room and holes") {
  ModelDriver model(device_of(64));
  CountingDriver driver(model);
  AddressTable addresses;
  CaptureGate gate(driver);
  DeviceShared shared(driver, 0, addresses, gate);
  Address base = 0;
  CHECK(driver.reserve(0, 256 * kPage, kPage, &base) == Status::ok);
  Heap heap(shared, 1, PoolId{}, base, 64 * kPage, 192 * kPage, Options{});
  const auto take = [&](Bytes bytes) {
    Address address = 0;
    CHECK(heap.allocate(bytes, &address) == Status::ok);
    return address;
  };
  CHECK(heap.stats().all.gaps == 0);
  const Address one = take(512);
  take(512);
  CHECK(heap.stats().small.gaps == 1);
  const Address low = take(3 << 20);
  take(3 << 20);
  CHECK(heap.stats().large.gaps == 0);
  CHECK(heap.free(low));
  CHECK((heap.stats().large.gaps == 1 && heap.stats().all.gaps == 2));
  CHECK(heap.free(one));
  CHECK(heap.stats().small.gaps == 1);
  heap.validate();
  heap.retire();
  shared.destroy_spare();
}

// A service makes a graph, drops it and makes the next, for months.
TEST_CASE("heaps that are gone add to totals and not to peaks") {
  ModelDriver model(device_of(256));
  Allocator allocator(model, Options{});
  const Address kept = allocator.allocate(3 << 20, 0, 0);
  const auto use_pool = [&](std::uint64_t number, Bytes large) {
    const PoolId pool{number, 0};
    allocator.begin_allocate_to_pool(0, pool, [](StreamId) { return true; });
    std::vector<Address> blocks;
    for (int i = 0; i < 5; ++i) blocks.push_back(allocator.allocate(i == 0 ? large : 1000, 0, 0));
    allocator.end_allocate_to_pool(0, pool);
    for (const Address block : blocks) allocator.free(block);
    allocator.release_pool(0, pool);
  };
  for (std::uint64_t round = 1; round <= 50; ++round) use_pool(round, round == 7 ? 9 << 20 : 4 << 20);
  const auto check_peaks = [&](std::int64_t pool_mib) {
    const DeviceStats stats = allocator.stats(0);
    CHECK((stats.all.blocks.current == 1 && stats.small.blocks.peak == 4 && stats.large.blocks.peak == 2));
    CHECK((stats.all.blocks.peak == 6 && stats.all.held_blocks.peak == 6));
    CHECK(stats.large.live.peak == (3 << 20) + (pool_mib << 20));
    CHECK(stats.small.reserved.peak == static_cast<std::int64_t>(kPage));
    CHECK(stats.all.unused.peak < 4 * static_cast<std::int64_t>(kPage));
  };
  check_peaks(9);
  CHECK((allocator.stats(0).all.blocks.total == 251 && allocator.stats(0).frees == 250));
  allocator.reset_peak_stats(0);
  CHECK((allocator.stats(0).all.blocks.peak == 1 && allocator.stats(0).small.live.peak == 0));
  use_pool(1000, 4 << 20);
  check_peaks(4);
  allocator.free(kept);
}

}  // namespace
