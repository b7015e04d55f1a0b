// What the engine tells an observer, and the layout it shows, against its own figures and the model's memory: at every
// moment the pages told of are the pages shown, and add up to what is reserved; every block lies on them.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "core/allocator.h"
#include "driver/model_driver.h"
#include "growing.h"

using namespace poolalloc;

namespace {

// Keeps account of pages by what it is told alone.
class Ledger final : public Observer {
 public:
  void pages_came(const HeapId& heap, Address address, Bytes bytes) override {
    for (Address page = address; page < address + bytes; page += kPageBytes)
      CHECK(pages.emplace(page, heap.stream).second);
  }
  void pages_left(const HeapId& heap, Address address, Bytes bytes) override {
    for (Address page = address; page < address + bytes; page += kPageBytes) {
      const auto found = pages.find(page);
      CHECK((found != pages.end() && found->second == heap.stream));
      pages.erase(found);
    }
  }
  void spare_changed(DeviceIndex, Bytes before, Bytes now) override {
    CHECK(before == spare);
    spare = now;
  }
  void free_completed(const BlockInfo& block) override {
    CHECK((block.pending && block.requested != 0 && block.requested <= block.rounded));
    completed.push_back(block.address);
  }

  std::map<Address, StreamId> pages;
  Bytes spare = 0;
  std::vector<Address> completed;
};

struct Device {
  explicit Device(std::uint64_t pages, std::uint64_t lag = 0, bool virtual_memory = true)
      : model([&] {
          ModelOptions options;
          options.memory_bytes = pages * kPageBytes;
          options.event_lag = lag;
          options.virtual_memory = virtual_memory;
          return options;
        }()),
        allocator(model, growing("tight")) {}

  void observe() { allocator.add_observer(ledger); }

  // The pages shown, each with whether it is idle.
  std::map<Address, bool> check_layout() const {
    const DeviceStats stats = allocator.stats(0);  // first: it notices frees that have completed
    const DeviceLayout layout = allocator.layout(0);
    std::map<Address, bool> shown;
    Bytes bytes = layout.spare, idle = layout.spare, live = 0, requested = 0, pending = 0;
    std::set<PhysicalHandle> frames;
    for (const HeapLayout& heap : layout.heaps) {
      Address end = 0;
      for (const PageRun& run : heap.pages) {
        CHECK((run.bytes != 0 && run.address >= end));
        end = run.address + run.bytes;
        bytes += run.bytes;
        if (run.idle) idle += run.bytes;
        for (Address page = run.address; page < end; page += kPageBytes) {
          shown.emplace(page, run.idle);
          PhysicalHandle frame = 0;
          Bytes offset = 0;
          const bool accessible = model.physical(0, page, &frame, &offset);
          CHECK((accessible || run.idle));  // a page on its way out may be mapped and no more
          if (!accessible) continue;
          if (offset == 0) CHECK_MESSAGE(frames.insert(frame).second, "a physical page is shown once");
        }
      }
      Address last = 0;
      for (const BlockInfo& block : heap.blocks) {
        CHECK(block.address >= last);
        last = block.address + block.rounded;
        (block.pending ? pending : live) += block.rounded;
        if (!block.pending) requested += block.requested;
        for (Address page = block.address / kPageBytes * kPageBytes; page < last; page += kPageBytes) {
          const auto under = shown.find(page);
          CHECK_MESSAGE((under != shown.end() && !under->second), "a block lies on pages that are not idle");
        }
      }
    }
    CHECK((bytes == static_cast<Bytes>(stats.reserved.current) && bytes == model.used_bytes(0)));
    CHECK(idle == static_cast<Bytes>(stats.idle.current));
    CHECK((live == static_cast<Bytes>(stats.live.current) && requested == static_cast<Bytes>(stats.requested.current)));
    CHECK(pending == static_cast<Bytes>(stats.pending.current));
    return shown;
  }
  void check_told() const {
    const auto shown = check_layout();
    CHECK(ledger.spare == allocator.layout(0).spare);
    CHECK(shown.size() == ledger.pages.size());
    for (const auto& [page, stream] : ledger.pages) CHECK(shown.count(page) == 1);
  }

  Ledger ledger;  // outlives those who tell it
  ModelDriver model;
  Allocator allocator;
};

TEST_CASE("a page counts where it was used last") {
  Device device(64);
  device.observe();
  const Address wall = device.allocator.allocate(3 * kPageBytes, 0, 0);
  const Address first = device.allocator.allocate(4 * kPageBytes, 0, 0);
  const Address guard = device.allocator.allocate(kPageBytes, 0, 0);
  device.allocator.free(first);
  device.check_told();
  CHECK(device.ledger.pages.count(first) == 1);
  // It fits into no hole, and its pages are taken from the hole.
  const Address larger = device.allocator.allocate(6 * kPageBytes, 0, 0);
  CHECK((larger != first && device.ledger.pages.count(larger) == 1 && device.ledger.pages.count(first) == 0));
  CHECK(device.ledger.pages.size() == 10);
  device.check_told();
  device.allocator.free(larger);
  CHECK_MESSAGE(device.ledger.pages.count(larger) == 1, "idle pages stay where they are");
  device.allocator.free(wall);
  device.allocator.free(guard);
  device.check_told();
  CHECK(device.allocator.empty_cache() == 10 * kPageBytes);
  CHECK((device.ledger.pages.empty() && device.ledger.spare == 0));
}

TEST_CASE("a free that waited is told once it is over") {
  Device device(64, 5);
  device.observe();
  const Address block = device.allocator.allocate(kPageBytes, 0, 0);
  CHECK(!device.allocator.block(block)->used_elsewhere);
  device.allocator.record_stream(block, {0, 16});
  CHECK((device.allocator.block(block)->used_elsewhere && !device.allocator.block(block)->pending));
  device.allocator.free(block);
  CHECK((device.ledger.completed.empty() && device.allocator.block(block)->pending));
  device.model.advance(10);
  device.allocator.empty_cache();
  CHECK(device.ledger.completed == std::vector<Address>{block});
}

TEST_CASE("nobody is told after the observer left") {
  Device device(64);
  device.observe();
  device.allocator.allocate(kPageBytes, 0, 0);
  CHECK(device.ledger.pages.size() == 1);
  device.allocator.remove_observer(device.ledger);
  device.allocator.allocate(kPageBytes, 0, 0);
  CHECK(device.ledger.pages.size() == 1);
  CHECK(device.check_layout().size() == 2);
}

TEST_CASE("pages told of are pages shown whatever happens") {
  for (unsigned seed = 0; seed < 10; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](unsigned end) { return static_cast<unsigned>(random() % end); };
    Device device(48, seed % 2 == 0 ? 0 : 3, seed < 6);
    device.observe();
    Allocator& allocator = device.allocator;
    std::vector<Address> blocks;
    const PoolId pool{1, 0};
    bool routing = false;
    for (int step = 0; step < 1500; ++step) {
      const unsigned action = below(100);
      const StreamId stream = 16 * below(3);
      if (action < 55) {
        const Bytes bytes = below(3) == 0 ? below(300'000) + 1 : below(8 * kPageBytes) + 1;
        try {
          blocks.push_back(allocator.allocate(bytes, 0, stream));
        } catch (const OutOfMemory&) {
        } catch (const DriverError&) {
        }
      } else if (action < 95 && !blocks.empty()) {
        std::swap(blocks[below(static_cast<unsigned>(blocks.size()))], blocks.back());
        if (below(6) == 0) allocator.record_stream(blocks.back(), {0, StreamId{16} * below(3)});
        allocator.free(blocks.back());
        blocks.pop_back();
      } else if (action == 95) {
        allocator.empty_cache();
      } else if (action == 96) {
        constexpr DriverCall kRefused[] = {DriverCall::create, DriverCall::map, DriverCall::allow_access,
                                           DriverCall::unmap, DriverCall::destroy};
        device.model.fail(kRefused[below(5)], below(3) + 1, below(2) == 0 ? Status::out_of_memory : Status::failed);
      } else if (action >= 98 && !routing) {
        allocator.begin_allocate_to_pool(0, pool, [](StreamId stream) { return stream == 16; });
        routing = true;
      } else if (routing) {
        allocator.end_allocate_to_pool(0, pool);
        allocator.release_pool(0, pool);
        routing = false;
      }
      if (step % 10 == 0) device.check_told();
    }
    allocator.validate();
  }
}

}  // namespace
