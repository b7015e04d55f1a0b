// Small blocks: slots, sleeping and waking slabs, pages that classes share, and every class filled to the brim.
#include "core/placement/slabs.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "core_rig.h"

using namespace rig;

namespace {

constexpr Bytes kMiB = 1 << 20;

struct Small : Range {
  explicit Small(std::uint64_t device_pages = 256, PageIndex pages = 256)
      : Range(device_pages, pages, pages + 8), slabs(residency, pages) {}

  Bytes take(int bin, Bytes requested) {
    Bytes offset = 0;
    CHECK(slabs.allocate(bin, requested, &offset) == Status::ok);
    return offset;
  }
  Bytes take(Bytes bytes) { return take(bin_of(bytes), bytes); }
  static PageIndex page_of(Bytes offset) { return static_cast<PageIndex>(offset / kPage); }
  Slabs::Found find(Bytes offset) const { return slabs.find(offset); }
  // The start of the live block that contains the offset, or ~0.
  Bytes start_of(Bytes offset) const {
    const Slabs::Found found = slabs.containing(offset);
    return found.size != 0 ? found.slab->offset + found.slot * found.size : ~Bytes{0};
  }
  void give(Bytes offset) {
    const Slabs::Found found = find(offset);
    CHECK(found.size != 0);
    if (slabs.free(found)) slabs.put_to_sleep();
  }
  BinStats stats(Bytes block_bytes) const {
    for (const BinStats& bin : slabs.stats())
      if (bin.block_bytes == block_bytes) return bin;
    return {};
  }
  void make_room() {
    Residency::Detached detached;
    residency.detach_idle(~0u, &detached);
    residency.detach_blocked(&detached);
    rig::leave(residency, detached);
  }
  void check() const {
    std::vector<std::uint32_t> blocks_of(residency.pages());
    slabs.validate(blocks_of);
    residency.validate(blocks_of);
    check_accounts();
    CHECK(slabs.resident_pages() * kPage == resident());
  }

  Slabs slabs;
};

TEST_CASE("blocks of every class are aligned and apart and each byte finds its block") {
  for (int bin = 0; bin <= Slabs::kMaxBin; ++bin) {
    Small heap;
    const Bytes size = bin_bytes(bin);
    std::set<Bytes> offsets;
    for (int i = 0; i < 200; ++i) {
      const Bytes offset = heap.take(bin, size);
      CHECK((offset % kGranularity == 0 && offset / kPage == (offset + size - 1) / kPage));
      const auto after = offsets.lower_bound(offset);
      CHECK((after == offsets.end() || offset + size <= *after));
      CHECK((after == offsets.begin() || *std::prev(after) + size <= offset));
      offsets.insert(offset);
    }
    for (Bytes offset : offsets)
      for (Bytes inside : {Bytes{0}, Bytes{1}, size / 2, size - 512, size - 1}) {
        CHECK(heap.start_of(offset + inside) == offset);
        CHECK((heap.find(offset + inside).size != 0) == (inside == 0));
      }
    CHECK((heap.stats(size).live_blocks == 200 && heap.stats(size).rounded == 200 * size));
    heap.check();
    for (Bytes offset : offsets) heap.give(offset);
    CHECK(heap.resident() == 0);
    heap.check();
  }
}

TEST_CASE("slabs waste little of their chunks") {
  for (int bin = 0; bin <= Slabs::kMaxBin; ++bin) {
    const SlabShape shape = slab_shape(bin_bytes(bin));
    CHECK((shape.slots >= 1 && shape.slots <= 64 && shape.chunks >= 1 && shape.chunks <= 64));
    const Bytes slab = shape.chunks * kChunkBytes, used = shape.slots * bin_bytes(bin);
    CHECK((used <= slab && (slab - used) * 8 <= slab));
    if (bin_bytes(bin) <= kMiB / 4) CHECK((slab - used) * 32 <= slab);
  }
}

TEST_CASE("classes share a page") {
  Small heap(1);  // a device of one page
  std::vector<Bytes> blocks;
  for (Bytes bytes = 512; bytes <= 8192; bytes += 512) blocks.push_back(heap.take(bytes));
  CHECK(heap.resident() == kPage);
  heap.check();
  for (Bytes offset : blocks) {
    heap.give(offset);
    heap.check();
  }
  CHECK(heap.resident() == 0);
}

TEST_CASE("only the start of a live block is found") {
  Small heap;
  const Bytes a = heap.take(1000);
  const Bytes b = heap.take(1024);
  CHECK((heap.find(a).size == 1024 && heap.find(a).requested == 1000));
  CHECK((heap.find(b).size == 1024 && heap.find(b).requested == 1024));
  for (Bytes off : {1, 512, 1023}) CHECK(heap.find(a + off).size == 0);
  CHECK(heap.find(b + 1024).size == 0);     // a free slot
  CHECK(heap.find(kPage - 512).size == 0);  // a chunk without a slab
  CHECK(heap.find(5 * kPage).size == 0);    // a page without slabs
  CHECK((heap.start_of(b + 1024) == ~Bytes{0} && heap.start_of(5 * kPage) == ~Bytes{0}));
  heap.give(a);
  CHECK((heap.find(a).size == 0 && heap.start_of(a + 5) == ~Bytes{0}));
  heap.check();
}

TEST_CASE("a freed block is the next of its class") {
  Small heap;
  for (int i = 0; i < 10; ++i) heap.take(2048);
  const Bytes one = heap.take(2048);
  heap.take(2048);
  heap.give(one);
  CHECK(heap.take(1600) == one);
}

TEST_CASE("the last free leaves no page resident and waking costs no driver call") {
  Small heap;
  const Bytes offset = heap.take(4096);
  heap.give(offset);
  CHECK((heap.resident() == 0 && heap.held() == kPage));
  heap.check();
  const std::uint64_t calls = mapping_calls(heap.driver);
  CHECK(heap.take(4096) == offset);
  CHECK((mapping_calls(heap.driver) == calls && heap.resident() == kPage));
  heap.check();
}

TEST_CASE("requests go to the lowest slabs so that high pages drain") {
  Small heap;
  constexpr Bytes kSize = 64 << 10;
  std::vector<Bytes> blocks;
  for (int i = 0; i < 320; ++i) blocks.push_back(heap.take(kSize));  // ten pages
  CHECK(heap.resident() == 10 * kPage);
  std::sort(blocks.begin(), blocks.end());
  // Every page has one block left and 31 to give: 40 requests come from the two lowest.
  for (std::size_t i = 0; i < blocks.size(); ++i)
    if (i % 32 != 0) heap.give(blocks[i]);
  CHECK(heap.resident() == 10 * kPage);
  std::set<Bytes> pages;
  for (int i = 0; i < 40; ++i) pages.insert(heap.take(kSize) / kPage);
  CHECK((*pages.rbegin() <= 2 && heap.resident() == 10 * kPage));
  heap.check();
}

TEST_CASE("no memory and no addresses are told apart and change nothing") {
  Small full(2);
  const int bin = bin_of(kMiB);
  for (int i = 0; i < 4; ++i) full.take(bin, kMiB);
  Bytes offset = 0;
  CHECK(full.slabs.allocate(bin, kMiB, &offset) == Status::out_of_memory);
  CHECK(full.slabs.allocate(0, 512, &offset) == Status::out_of_memory);
  CHECK((full.stats(kMiB).live_blocks == 4 && full.stats(512).live_blocks == 0));
  full.check();
  Small narrow(32, 3);
  for (int i = 0; i < 6; ++i) narrow.take(bin, kMiB);
  CHECK(narrow.slabs.allocate(bin, kMiB, &offset) == Status::not_supported);
  narrow.check();
  for (Bytes block = 0; block < 4; ++block) narrow.give(block * kMiB);
  CHECK(narrow.slabs.allocate(0, 512, &offset) == Status::ok);  // one slab sleeps, the others' chunks serve all classes
  narrow.check();
}

TEST_CASE("a driver that refuses a page leaves nothing changed") {
  const int bin = bin_of(kMiB);
  for (DriverCall call : {DriverCall::create, DriverCall::map, DriverCall::allow_access}) {
    Small heap;
    for (int i = 0; i < 4; ++i) heap.take(bin, kMiB);  // two full pages
    const std::uint64_t mappings = heap.residency.mappings();
    heap.model.fail(call, 1, Status::failed);
    Bytes offset = 0;
    CHECK(heap.slabs.allocate(0, 512, &offset) == Status::failed);
    heap.residency.return_left_behind();
    CHECK((heap.resident() == 2 * kPage && heap.held() == 2 * kPage && heap.residency.mappings() == mappings));
    CHECK((heap.stats(512).live_blocks == 0 && heap.stats(kMiB).live_blocks == 4));
    heap.check();
    heap.take(512);
    heap.check();
  }
}

TEST_CASE("a page that left while its slab slept is not used") {
  Small heap;
  const Bytes offset = heap.take(8192);
  heap.give(offset);
  Residency::Detached detached;
  heap.residency.detach_idle(1, &detached);
  CHECK(detached.size() == 1);
  const Bytes other = heap.take(8192);  // while the page is on its way out
  CHECK(other / kPage != offset / kPage);
  rig::leave(heap.residency, detached);
  heap.check();
  heap.give(other);
  heap.check();
}

TEST_CASE("statistics of a class add up") {
  Small heap;
  for (int i = 0; i < 5; ++i) heap.take(600);
  const Bytes last = heap.take(1024);
  heap.give(last);
  const BinStats stats = heap.stats(1024);
  CHECK((stats.live_blocks == 5 && stats.allocations == 6));
  CHECK((stats.requested == 3000 && stats.rounded == 5 * 1024));
  CHECK((stats.resident >= stats.rounded && stats.resident <= kPage));
}

// One page of addresses for each page of the device, and one for a sleeping slab of each class, are enough for
// anything, once what stands in the way is unmapped.
TEST_CASE("random use of slabs agrees with a list of intervals") {
  constexpr std::uint64_t kDevice = 12;
  std::mt19937 random(5);
  for (int run = 0; run < 20; ++run) {
    Small heap(kDevice, kDevice + Slabs::kMaxBin + 1);
    std::map<Bytes, std::pair<Bytes, Bytes>> live;  // offset: size, requested
    for (int step = 0; step < 600; ++step) {
      const unsigned what = random() % 100;
      if (what < 52) {
        const Bytes bytes = 1 + (random() % Slabs::kMaxBlock >> random() % 12);
        const int bin = bin_of(bytes);
        Bytes offset = 0;
        Status status = heap.slabs.allocate(bin, bytes, &offset);
        if (status != Status::ok && heap.resident() < kDevice * kPage) {
          heap.make_room();
          status = heap.slabs.allocate(bin, bytes, &offset);
        }
        CHECK(((status == Status::ok) || heap.resident() == kDevice * kPage));
        if (status == Status::ok) {
          const auto after = live.upper_bound(offset);
          CHECK((after == live.end() || offset + bin_bytes(bin) <= after->first));
          CHECK((after == live.begin() || std::prev(after)->first + std::prev(after)->second.first <= offset));
          live[offset] = {bin_bytes(bin), bytes};
        }
      } else if (what < 98) {
        if (live.empty()) continue;
        const auto victim = std::next(live.begin(), static_cast<std::ptrdiff_t>(random() % live.size()));
        const Slabs::Found found = heap.find(victim->first);
        CHECK((found.size == victim->second.first && found.requested == victim->second.second));
        heap.give(victim->first);
        CHECK(heap.find(victim->first).size == 0);
        live.erase(victim);
      } else {
        Residency::Detached detached;
        heap.residency.detach_idle(random() % 6, &detached);
        rig::leave(heap.residency, detached);
        heap.supply.destroy_spare();
      }
      if (step % 16 == 0) heap.check();
    }
    Bytes rounded = 0, requested = 0;
    for (const BinStats& bin : heap.slabs.stats()) {
      rounded += bin.rounded;
      requested += bin.requested;
    }
    for (const auto& [offset, block] : live) {
      rounded -= block.first;
      requested -= block.second;
    }
    CHECK((rounded == 0 && requested == 0));
    heap.check();
  }
}

}  // namespace
