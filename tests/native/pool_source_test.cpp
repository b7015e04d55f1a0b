// Pools that bring an allocator of their own, and pools whose blocks share nothing.
#include <doctest/doctest.h>

#include <chrono>
#include <future>
#include <map>
#include <stdexcept>
#include <vector>

#include "core/allocator.h"
#include "driver/model_driver.h"

using namespace poolalloc;

namespace {

constexpr Bytes kMiB = Bytes{1} << 20;
constexpr PoolId kPool{0, 7};

// Memory of the modelled device by its plain calls, with account of who has what.
class Source final : public SegmentSource {
 public:
  explicit Source(ModelDriver& driver, Bytes shift = 0) : driver_(driver), shift_(shift) {}
  ~Source() override {
    if (gone != nullptr) *gone = true;
  }

  Address allocate(Bytes bytes, DeviceIndex device, StreamId stream) override {
    if (before_allocate) before_allocate();
    if (bytes > most) return 0;
    if (nowhere != 0) return nowhere;
    Address address = 0;
    if (driver_.allocate_segment(device, bytes + shift_, &address) != Status::ok) return 0;
    asked.push_back(bytes);
    streams.push_back(stream);
    live[address + shift_] = bytes;
    return address + shift_;
  }
  bool free(Address address, DeviceIndex device) noexcept override {
    if (before_free) before_free();
    if (address == nowhere) return true;
    if (refusals > 0 && refusals-- > 0) return false;
    CHECK(live.erase(address) == 1);
    ++freed;
    return driver_.free_segment(device, address - shift_) == Status::ok;
  }
  // Whether all of this lies in one allocation that was handed out.
  bool has(Address address, Bytes bytes) const {
    const auto after = live.upper_bound(address);
    if (after == live.begin()) return false;
    const auto& [start, size] = *std::prev(after);
    return address + bytes <= start + size;
  }

  std::vector<Bytes> asked;
  std::vector<StreamId> streams;
  std::map<Address, Bytes> live;
  int freed = 0;
  int refusals = 0;  // of memory that comes back
  Bytes most = ~Bytes{0};
  Address nowhere = 0;  // handed out in place of memory, if it is not 0
  bool* gone = nullptr;
  std::function<void()> before_allocate, before_free;

 private:
  ModelDriver& driver_;
  const Bytes shift_;
};

struct Rig {
  explicit Rig(std::uint64_t device_pages = 256, Bytes shift = 0, bool brings = true, bool segments = false)
      : model([&] {
          ModelOptions options;
          options.memory_bytes = device_pages * kPageBytes;
          return options;
        }()),
        allocator(model,
                  [&] {
                    Options options;
                    options.growth = "tight";
                    options.segments = segments;
                    return options;
                  }()),
        source(std::make_shared<Source>(model, shift)) {
    allocator.retain_pool(0, kPool, brings ? source : nullptr);
  }

  Address inside(Bytes bytes, StreamId stream = 0) {
    allocator.begin_allocate_to_pool(0, kPool, [](StreamId) { return true; });
    struct Leave {
      ~Leave() {
        allocator.end_allocate_to_pool(0, kPool);
        allocator.release_pool(0, kPool);
      }
      Allocator& allocator;
    } leave{allocator};
    return allocator.allocate(bytes, 0, stream);
  }
  Bytes reserved() const { return static_cast<Bytes>(allocator.stats(0).reserved.current); }
  void sound() const {
    allocator.validate();
    CHECK(model.violations() == 0);
  }

  ModelDriver model;
  Allocator allocator;
  std::shared_ptr<Source> source;
};

// Runs on another thread while this one is inside the user's code.
void meanwhile(const std::function<void()>& call) {
  auto done = std::async(std::launch::async, call);
  CHECK(done.wait_for(std::chrono::seconds(20)) == std::future_status::ready);
  done.get();
}

TEST_CASE("segments come from the pools allocator and blocks are cut from them") {
  Rig rig;
  const Address small = rig.inside(kMiB), other = rig.inside(kMiB), third = rig.inside(kMiB);
  CHECK((rig.source->asked == std::vector<Bytes>{2 * kMiB, 2 * kMiB}));
  const Address medium = rig.inside(3 * kMiB), beside = rig.inside(5 * kMiB);
  CHECK((rig.source->asked.size() == 3 && rig.source->asked.back() == 20 * kMiB));
  const Address large = rig.inside(33 * kMiB, 5);
  CHECK((rig.source->asked.back() == 34 * kMiB && rig.source->streams.back() == 5));
  const std::pair<Address, Bytes> blocks[] = {{small, kMiB},      {other, kMiB},      {third, kMiB},
                                              {medium, 3 * kMiB}, {beside, 5 * kMiB}, {large, 33 * kMiB}};
  for (const auto& [address, bytes] : blocks) CHECK(rig.source->has(address, bytes));
  const Address outside = rig.allocator.allocate(8 * kMiB, 0, 0);
  CHECK((!rig.source->has(outside, 1) && rig.source->asked.size() == 4));
  CHECK((rig.reserved() == 58 * kMiB + 8 * kMiB && rig.model.used_bytes(0) == rig.reserved()));
  rig.sound();
  for (const auto& [address, bytes] : blocks) rig.allocator.free(address);
  CHECK((rig.inside(33 * kMiB, 5) == large && rig.source->asked.size() == 4));  // cached
  rig.allocator.empty_cache();
  CHECK(rig.source->freed == 0);  // a pool in use keeps its memory
  rig.sound();
}

TEST_CASE("memory goes back when the pool ends and the allocator with it") {
  Rig rig;
  bool gone = false;
  rig.source->gone = &gone;
  const Address kept = rig.inside(kMiB), large = rig.inside(64 * kMiB);
  Source& source = *rig.source;
  rig.source.reset();
  rig.allocator.free(large);
  rig.allocator.release_pool(0, kPool);
  CHECK((source.freed == 1 && source.live.size() == 1));
  rig.allocator.empty_cache();
  CHECK((!gone && source.freed == 1));  // its last block is still held
  rig.allocator.free(kept);
  CHECK((!gone && source.live.size() == 1));
  rig.allocator.empty_cache();
  CHECK(gone);
  CHECK((rig.reserved() == 0 && rig.model.used_bytes(0) == 0));
  rig.sound();
}

TEST_CASE("an allocator without memory is out of memory and the limit counts") {
  Rig rig;
  rig.source->most = 10 * kMiB;
  CHECK_THROWS_AS(rig.inside(12 * kMiB), OutOfMemory);
  const Address block = rig.inside(4 * kMiB);  // where 20 MiB cannot be had, 4 will do
  CHECK((rig.source->asked == std::vector<Bytes>{4 * kMiB}));
  rig.source->most = ~Bytes{0};
  rig.allocator.set_memory_limit(64 * kMiB, 0);
  CHECK_THROWS_AS(rig.inside(62 * kMiB), OutOfMemory);
  CHECK((rig.source->live.size() == 1 && rig.reserved() == 4 * kMiB));
  rig.allocator.free(block);
  rig.sound();
}

TEST_CASE("what the allocator throws reaches the caller and nothing is lost") {
  Rig rig;
  rig.source->before_allocate = [] { throw std::runtime_error("no such fabric"); };
  CHECK_THROWS_AS(rig.inside(kMiB), std::runtime_error);
  CHECK_THROWS_AS(rig.inside(30 * kMiB), std::runtime_error);
  CHECK(rig.reserved() == 0);
  rig.source->before_allocate = nullptr;
  rig.allocator.free(rig.inside(30 * kMiB));
  rig.sound();
}

TEST_CASE("the allocator is called under no lock") {
  Rig rig(64);
  const Address held = rig.inside(600), spare = rig.inside(24 * kMiB);
  const auto use_everything = [&] {
    rig.allocator.free(rig.allocator.allocate(600, 0, 0));  // routed into this pool, from the slab that is there
    rig.allocator.stats(0);
    rig.allocator.layout(0);
    rig.allocator.trim(0, 0, true);
    CHECK(rig.allocator.block(held).has_value());
  };
  int calls = 0;
  rig.source->before_allocate = [&] {
    ++calls;
    meanwhile(use_everything);
  };
  const Address more = rig.inside(8 * kMiB);
  CHECK(calls == 1);
  rig.source->most = 30 * kMiB;
  CHECK_THROWS_AS(rig.inside(60 * kMiB), OutOfMemory);  // up the ladder and back
  CHECK(calls == 3);
  rig.allocator.free(spare);
  rig.allocator.free(more);
  rig.source->before_allocate = nullptr;
  rig.source->before_free = [&] {
    ++calls;
    meanwhile([&] {
      rig.allocator.stats(0);
      rig.allocator.trim(1 << 30, 0, true);
    });
  };
  calls = 0;
  rig.allocator.release_pool(0, kPool);
  CHECK((calls == 2 && rig.source->freed == 2));  // all but what `held` lies in
  rig.source->before_free = nullptr;
  rig.allocator.free(held);
  rig.sound();
}

TEST_CASE("an address that no device has is an error") {
  Rig rig(64);
  rig.source->nowhere = Address{1} << 60;
  CHECK_THROWS_AS(rig.inside(600), DriverError);
  CHECK((rig.source->live.empty() && rig.reserved() == 0));
  rig.source->nowhere = 0;
  rig.allocator.free(rig.inside(600));
  rig.sound();
}

TEST_CASE("limits give its memory back under no lock") {
  Rig rig(64);
  rig.allocator.free(rig.inside(24 * kMiB));
  rig.source->refusals = 1;
  rig.allocator.release_pool(0, kPool);
  CHECK(rig.source->freed == 0);
  rig.source->before_free = [&] { meanwhile([&] { CHECK(rig.allocator.memory_fraction(1) == 0.5); }); };
  rig.allocator.set_memory_fraction(0.5);
  CHECK(rig.source->freed == 1);
  rig.sound();
}

TEST_CASE("idle memory of a pool that lends goes back before others run out") {
  for (const bool lends : {true, false}) {
    Rig rig(64);
    rig.allocator.set_pool_use_on_oom(0, kPool, lends);
    rig.allocator.free(rig.inside(100 * kMiB));
    if (lends) {
      rig.allocator.free(rig.allocator.allocate(100 * kMiB, 0, 0));
      CHECK((rig.source->freed == 1 && rig.allocator.stats(0).after_lending == 1));
    } else {
      CHECK_THROWS_AS(rig.allocator.allocate(100 * kMiB, 0, 0), OutOfMemory);
      CHECK(rig.source->freed == 0);
    }
    rig.sound();
  }
}

TEST_CASE("allocations may start anywhere") {
  Rig rig(256, 4096);
  const Address small = rig.inside(300), medium = rig.inside(3 * kMiB), large = rig.inside(50 * kMiB);
  for (const auto& [address, bytes] : {std::pair{small, Bytes{300}}, {medium, 3 * kMiB}, {large, 50 * kMiB}})
    CHECK(rig.source->has(address, bytes));
  rig.sound();
  for (const Address each : {small, medium, large}) rig.allocator.free(each);
  rig.allocator.release_pool(0, kPool);
  CHECK((rig.source->live.empty() && rig.reserved() == 0 && rig.model.used_bytes(0) == 0));
  rig.sound();
}

// What a pool without splitting does, wherever its memory comes from.
void check_undivided(Rig& rig) {
  rig.allocator.set_pool_no_split(0, kPool);
  const Bytes sizes[] = {600, 600, kMiB, 3 * kMiB, 3 * kMiB, 30 * kMiB};
  std::vector<std::pair<Address, Bytes>> blocks;
  for (const Bytes bytes : sizes) {
    const Address address = rig.inside(bytes);
    const auto info = rig.allocator.block(address);
    CHECK((info && info->requested == bytes && info->rounded % kPageBytes == 0 && address % kPageBytes == 0));
    for (const auto& [other, size] : blocks) CHECK((address + info->rounded <= other || other + size <= address));
    blocks.emplace_back(address, info->rounded);
  }
  rig.sound();
  CHECK_THROWS_AS(rig.allocator.set_pool_no_split(0, PoolId{0, 99}), UsageError);
  for (const auto& [address, size] : blocks) rig.allocator.free(address);
  rig.sound();
}

TEST_CASE("without splitting every block has its pages to itself") {
  Rig rig(256, 0, false);
  check_undivided(rig);
  CHECK(rig.reserved() == (3 * 2 + 2 * 4 + 30) * kMiB);
}

TEST_CASE("without splitting every block has its segment to itself") {
  Rig own;
  check_undivided(own);
  CHECK((own.source->asked == std::vector<Bytes>{2 * kMiB, 2 * kMiB, 2 * kMiB, 4 * kMiB, 4 * kMiB, 30 * kMiB}));
  const Address reused = own.inside(kMiB), larger = own.inside(20 * kMiB);
  CHECK(own.source->asked.size() == 6);
  CHECK((own.source->live.count(reused) == 1 && own.source->live.count(larger) == 1));
  CHECK(own.allocator.block(larger)->rounded == 30 * kMiB);  // the whole segment is the block's
  own.sound();
  Rig devices(256, 0, false, true);
  check_undivided(devices);
}

TEST_CASE("a pool that has split its memory cannot be told not to") {
  Rig rig;
  rig.allocator.free(rig.inside(600));
  CHECK_THROWS_AS(rig.allocator.set_pool_no_split(0, kPool), UsageError);
}

}  // namespace
