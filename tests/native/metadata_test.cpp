// The allocator's own memory follows what it describes, whatever was there before.
#include <doctest/doctest.h>
#include <malloc.h>
#include <sys/mman.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/allocator.h"
#include "core/base/lazy_array.h"
#include "core/base/record_pool.h"
#include "core_rig.h"

using namespace rig;

namespace {

std::size_t host_pages(const void* start, std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> present((bytes + page - 1) / page);
  CHECK(mincore(const_cast<void*>(start), bytes, present.data()) == 0);
  std::size_t count = 0;
  for (const unsigned char each : present) count += each & 1;
  return count;
}

TEST_CASE("a lazy array gives back whole pages and is zero there") {
  LazyArray<std::uint64_t> numbers(1 << 20);
  const std::size_t bytes = std::size_t{8} << 20;
  for (std::size_t i = 0; i < 1 << 20; ++i) numbers[i] = i + 1;
  const std::size_t all = host_pages(numbers.data(), bytes);
  numbers.discard(1000, 500'000);
  const std::size_t left = host_pages(numbers.data(), bytes);
  CHECK((left < all * 6 / 10 && left > all / 2));
  CHECK((numbers[999] == 1000 && numbers[500'000] == 500'001 && numbers[250'000] == 0));
  for (std::size_t i = 1000; i < 500'000; ++i)
    CHECK((numbers[i] == 0 || numbers[i] == i + 1));  // in pages shared with others
  numbers.discard(7, 9);
  CHECK((numbers[7] == 8 && numbers[8] == 9));
}

TEST_CASE("records go back by chunks without one in use") {
  struct Record {
    Record* next = nullptr;
    std::uint64_t value = 0;
  };
  RecordPool<Record, &Record::next, 32> pool;
  std::mt19937 random(3);
  std::vector<Record*> taken;
  for (int round = 0; round < 50; ++round) {
    const std::size_t wanted = random() % 2000;
    while (taken.size() < wanted) {
      taken.push_back(pool.take());
      taken.back()->value = reinterpret_cast<std::uintptr_t>(taken.back());
    }
    while (taken.size() > wanted) {
      std::swap(taken[random() % taken.size()], taken.back());
      taken.back()->value = 0;
      pool.give(taken.back());
      taken.pop_back();
    }
    if (round % 3 == 0) pool.shed();
    CHECK(std::set<Record*>(taken.begin(), taken.end()).size() == taken.size());
    for (const Record* record : taken) CHECK(record->value == reinterpret_cast<std::uintptr_t>(record));
    CHECK(pool.bytes() >= taken.size() * sizeof(Record));
  }
  for (Record* record : taken) pool.give(record);
  pool.shed();
  CHECK(pool.bytes() == 0);
}

// Blocks come and go, each at addresses that nothing has used before.
TEST_CASE("tables of addresses that nothing uses any more go back") {
  constexpr PageIndex kPages = 400'000;
  Range pages(64, 4096, kPages);
  CHECK(pages.residency.acquire(5, 6) == Status::ok);  // stays
  Bytes most = 0, least = ~Bytes{0};
  for (PageIndex first = 4096; first + 8 < kPages; first += 331) {
    CHECK(pages.residency.acquire(first, first + 2) == Status::ok);
    pages.residency.set_owner(first, &pages);
    CHECK(pages.residency.blocks(first + 1) == 1);
    pages.residency.set_owner(first, nullptr);
    pages.residency.release(first, first + 2);
    PageTable::Detached leaving;
    pages.residency.detach_idle(~0u, &leaving);
    leave(pages.residency, leaving);
    if (pages.residency.shed_due()) pages.residency.shed_tables();
    most = std::max(most, pages.residency.metadata_bytes());
    least = std::min(least, pages.residency.metadata_bytes());
  }
  // What 1,024 pages touch between two looks: a part of the tables each, at most.
  CHECK((most < 350 * (Bytes{12} << 10) && most < kPages * 23 / 2));
  CHECK(pages.residency.acquire(kPages - 9, kPages - 8) == Status::ok);
  pages.residency.shed_tables();
  CHECK(pages.residency.metadata_bytes() <= least + (Bytes{24} << 10));
  CHECK((pages.residency.blocks(5) == 1 && pages.residency.blocks(kPages - 9) == 1));
  CHECK(pages.residency.untouched() == kPages - 7);
  pages.residency.release(kPages - 9, kPages - 8);
  pages.residency.release(5, 6);
  pages.check_accounts();
}

// A slot of a page may be taken although the page has no memory: holes begin there.
TEST_CASE("tables with a taken slot stay") {
  Range pages(64, 512, 100'000);
  int owner = 0;
  CHECK(pages.residency.acquire(70'000, 70'000) == Status::ok);
  pages.residency.release(70'000, 70'000);
  pages.residency.set_owner(70'001, &owner);
  pages.residency.set_owner(71'000, &owner);  // in a part that has never had a page with memory
  PageTable::Detached leaving;
  pages.residency.detach_idle(~0u, &leaving);
  leave(pages.residency, leaving);
  pages.residency.shed_tables();
  CHECK((pages.residency.owner<int>(70'001) == &owner && pages.residency.owner<int>(71'000) == &owner));
}

TEST_CASE("with the last block goes what was needed for it") {
  ModelOptions device;
  device.memory_bytes = Bytes{16} << 30;
  ModelDriver model(device);
  Allocator allocator(model, Options{});
  std::mt19937 random(11);
  allocator.free(allocator.allocate(5 << 20, 0, 0));
  allocator.free(allocator.allocate(600, 0, 0));
  allocator.empty_cache();
  const std::uint64_t before = allocator.stats(0).metadata_bytes;
  for (int round = 0; round < 12; ++round) {
    std::vector<Address> blocks;
    for (int i = 0; i < 30'000; ++i) {
      const Bytes bytes = i % 4 != 0 ? 1 + random() % (100 << 10) : 1 + random() % (1 << 20);
      blocks.push_back(allocator.allocate(bytes, 0, 0));
    }
    const DeviceStats full = allocator.stats(0);
    CHECK((full.metadata_bytes > 10 * before &&
           full.metadata_bytes <=
               before + 64 * full.live_blocks + static_cast<std::uint64_t>(full.reserved.current) / 1000));
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (const Address block : blocks) allocator.free(block);
    allocator.empty_cache();
    allocator.validate();
    CHECK(allocator.stats(0).metadata_bytes < 2 * before);
  }
}

// Of this process, by the C library's count: also what is in no figure of ours. (Zero where a sanitizer counts itself.)
std::size_t bytes_in_use() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

TEST_CASE("a recording that has ended leaves next to nothing") {
  ModelDriver model(device_of(64));
  Allocator allocator(model, Options{});
  const auto record = [&] {
    allocator.start_log("/dev/null", "{}");
    for (int i = 0; i < 20'000; ++i) allocator.free(allocator.allocate(600 + i % 1000, 0, 0));
    allocator.stop_log();
  };
  record();
  const std::size_t before = bytes_in_use();
  constexpr std::size_t kRecordings = 50;
  for (std::size_t i = 0; i < kRecordings; ++i) record();
  CHECK(bytes_in_use() < before + kRecordings * 4096);
}

TEST_CASE("a recordings thread takes no signals") {
  const auto tasks = [] {
    std::set<std::string> all;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) all.insert(entry.path());
    return all;
  };
  std::thread([] {}).join();  // a sanitizer starts a thread of its own with the first one
  const std::set<std::string> before = tasks();
  ModelDriver model(device_of(64));
  Allocator allocator(model, Options{});
  allocator.start_log("/dev/null", "{}");
  int found = 0;
  for (const std::string& task : tasks()) {
    if (before.count(task) != 0) continue;
    std::ifstream status(task + "/status");
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("SigBlk:")) found += (std::stoull(line.substr(7), nullptr, 16) >> (SIGTERM - 1) & 1) != 0;
  }
  CHECK(found == 1);
  allocator.stop_log();
}

}  // namespace
