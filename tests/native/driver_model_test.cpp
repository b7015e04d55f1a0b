// The modelled device: exact accounts, the rules of the contract, time, captures, injected failures, threads.
#include <doctest/doctest.h>

#include <atomic>
#include <string>
#include <thread>

#include "core/base/errors.h"
#include "core/streams/capture.h"
#include "driver/counting_driver.h"
#include "driver/model_driver.h"

using namespace poolalloc;

namespace {

constexpr Bytes kPage = kPageBytes;

ModelOptions small() {
  ModelOptions options;
  options.devices = 2;
  options.memory_bytes = 16 * kPage;
  return options;
}

Bytes free_bytes(ModelDriver& driver, DeviceIndex device = 0) {
  Bytes free = 0;
  Bytes total = 0;
  CHECK(driver.memory_info(device, &free, &total) == Status::ok);
  CHECK(free + driver.used_bytes(device) == total);
  return free;
}

Address reserve(Driver& driver, Bytes bytes, Bytes alignment = kPage, DeviceIndex device = 0) {
  Address address = 0;
  CHECK(driver.reserve(device, bytes, alignment, &address) == Status::ok);
  CHECK((address != 0 && address % alignment == 0 && address + bytes <= Address{1} << 47));
  return address;
}

PhysicalHandle create(Driver& driver, Bytes bytes, DeviceIndex device = 0) {
  PhysicalHandle handle = 0;
  CHECK(driver.create(device, bytes, &handle) == Status::ok);
  return handle;
}

EventHandle event(Driver& driver) {
  EventHandle handle = 0;
  CHECK(driver.create_event(0, &handle) == Status::ok);
  return handle;
}

// The call broke the contract: it failed, was counted, and its text holds `word`.
#define CHECK_MISUSE(driver, call, word)                          \
  do {                                                            \
    std::uint64_t before = (driver).violations();                 \
    CHECK((call) == Status::failed);                              \
    CHECK((driver).violations() == before + 1);                   \
    CHECK((driver).last_error().find(word) != std::string::npos); \
  } while (false)

TEST_CASE("memory is held until destroyed and unmapped everywhere") {
  ModelDriver driver(small());
  Address a = reserve(driver, 8 * kPage);
  PhysicalHandle handle = create(driver, 2 * kPage);
  CHECK(free_bytes(driver) == 14 * kPage);
  CHECK(driver.map(0, a, 2 * kPage, handle) == Status::ok);
  CHECK(driver.map(0, a + 4 * kPage, 2 * kPage, handle) == Status::ok);  // aliasing
  CHECK(free_bytes(driver) == 14 * kPage);
  CHECK(driver.destroy(0, handle) == Status::ok);
  CHECK(driver.unmap(0, a, 2 * kPage) == Status::ok);
  CHECK(free_bytes(driver) == 14 * kPage);
  CHECK(driver.unmap(0, a + 4 * kPage, 2 * kPage) == Status::ok);
  CHECK(free_bytes(driver) == 16 * kPage);
  CHECK(driver.peak_used_bytes(0) == 2 * kPage);
  CHECK(driver.release(0, a, 8 * kPage) == Status::ok);
  CHECK(driver.violations() == 0);
  CHECK(free_bytes(driver, 1) == 16 * kPage);
}

TEST_CASE("over capacity is out of memory and changes nothing") {
  ModelDriver driver(small());
  PhysicalHandle handle = create(driver, 15 * kPage);
  PhysicalHandle other = 0;
  CHECK(driver.create(0, 2 * kPage, &other) == Status::out_of_memory);
  CHECK(driver.last_error().find("create") != std::string::npos);
  CHECK(free_bytes(driver) == kPage);
  Address segment = 0;
  CHECK(driver.allocate_segment(0, kPage + 1, &segment) == Status::out_of_memory);
  CHECK(driver.allocate_segment(0, ~Bytes{0}, &segment) == Status::out_of_memory);
  CHECK(driver.allocate_segment(0, kPage, &segment) == Status::ok);
  CHECK(driver.create(1, 16 * kPage, &other) == Status::ok);
  CHECK(driver.destroy(0, handle) == Status::ok);
  CHECK(driver.free_segment(0, segment) == Status::ok);
  CHECK(free_bytes(driver) == 16 * kPage);
  CHECK(driver.violations() == 0);
}

TEST_CASE("broken rules of memory are refused and counted") {
  ModelDriver driver(small());
  Address a = reserve(driver, 4 * kPage);
  PhysicalHandle handle = create(driver, 2 * kPage);
  CHECK_MISUSE(driver, driver.map(0, a, kPage, handle), "has 4194304");
  CHECK_MISUSE(driver, driver.map(0, a + 512, 2 * kPage, handle), "not inside");
  CHECK_MISUSE(driver, driver.map(0, a + 3 * kPage, 2 * kPage, handle), "not inside");
  CHECK_MISUSE(driver, driver.map(1, a, 2 * kPage, handle), "not a live handle");
  CHECK(driver.map(0, a, 2 * kPage, handle) == Status::ok);
  CHECK_MISUSE(driver, driver.map(0, a + kPage, 2 * kPage, handle), "overlap");
  CHECK_MISUSE(driver, driver.release(0, a, 4 * kPage), "has a mapping");
  CHECK_MISUSE(driver, driver.unmap(0, a, kPage), "whole mappings");
  CHECK_MISUSE(driver, driver.unmap(0, a + 2 * kPage, kPage), "whole mappings");
  CHECK_MISUSE(driver, driver.allow_access(0, a, 4 * kPage), "whole mappings");
  CHECK(driver.unmap(0, a, 2 * kPage) == Status::ok);
  CHECK_MISUSE(driver, driver.unmap(0, a, 2 * kPage), "whole mappings");
  CHECK(driver.destroy(0, handle) == Status::ok);
  CHECK_MISUSE(driver, driver.destroy(0, handle), "not a live handle");
  CHECK_MISUSE(driver, driver.map(0, a, 2 * kPage, handle), "not a live handle");
  CHECK_MISUSE(driver, driver.release(0, a, 2 * kPage), "not reserved as one");
  CHECK(driver.release(0, a, 4 * kPage) == Status::ok);
  CHECK_MISUSE(driver, driver.release(0, a, 4 * kPage), "not reserved as one");
  CHECK_MISUSE(driver, driver.create(0, kPage + 512, &handle), "multiple");
  CHECK_MISUSE(driver, driver.reserve(0, kPage, 3, &a), "aligned");
  CHECK_MISUSE(driver, driver.create(2, kPage, &handle), "2 devices");
  CHECK_MISUSE(driver, driver.free_segment(0, a), "not the start");
  CHECK(driver.first_violation().find("has 4194304") != std::string::npos);
  CHECK(free_bytes(driver) == 16 * kPage);
}

TEST_CASE("a destroyed handle is never valid again though its place is reused") {
  ModelDriver driver(small());
  PhysicalHandle first = create(driver, kPage);
  CHECK(driver.destroy(0, first) == Status::ok);
  PhysicalHandle second = create(driver, kPage);
  CHECK(first != second);
  CHECK_MISUSE(driver, driver.destroy(0, first), "not a live handle");
  CHECK(driver.destroy(0, second) == Status::ok);
}

TEST_CASE("memory is reached only where access was allowed") {
  ModelDriver driver(small());
  Address a = reserve(driver, 4 * kPage);
  PhysicalHandle one = create(driver, kPage);
  PhysicalHandle two = create(driver, 2 * kPage);
  CHECK(driver.map(0, a, kPage, one) == Status::ok);
  CHECK(driver.map(0, a + kPage, 2 * kPage, two) == Status::ok);
  PhysicalHandle handle = 0;
  Bytes offset = 0;
  char byte = 1;
  CHECK(!driver.physical(0, a, &handle, &offset));
  CHECK_MISUSE(driver, driver.copy_to_host(0, &byte, a, 1, 0), "nothing accessible");
  CHECK(driver.allow_access(0, a, 3 * kPage) == Status::ok);
  CHECK((driver.physical(0, a + 2 * kPage + 512, &handle, &offset) && handle == two && offset == kPage + 512));
  CHECK((driver.copy_to_host(0, &byte, a + 3 * kPage - 1, 1, 0) == Status::ok && byte == 0));
  CHECK_MISUSE(driver, driver.copy_from_host(0, a + 3 * kPage - 1, &byte, 2, 0), "nothing accessible");
  const char written[] = "across two pages";
  char read[sizeof written] = {};
  CHECK(driver.copy_from_host(0, a + 2 * kPage - 4, written, sizeof written, 0) == Status::ok);
  CHECK(driver.copy_to_host(0, read, a + 2 * kPage - 4, sizeof read, 0) == Status::ok);
  CHECK(std::string_view(read) == written);
  CHECK(driver.unmap(0, a, 3 * kPage) == Status::ok);
  CHECK(!driver.physical(0, a, &handle, &offset));
  CHECK(driver.map(0, a, kPage, one) == Status::ok);
  CHECK(!driver.physical(0, a, &handle, &offset));  // access does not survive a new mapping
}

TEST_CASE("reserved ranges never overlap and are reused") {
  ModelDriver driver(small());
  Address a = reserve(driver, 3 * kPage);
  Address b = reserve(driver, 5 * kPage, Bytes{1} << 30);
  Address c = reserve(driver, 2 * kPage, kPage, 1);
  CHECK((a + 3 * kPage <= b || b + 5 * kPage <= a));
  CHECK((c + 2 * kPage <= a || a + 3 * kPage <= c));
  CHECK((c + 2 * kPage <= b || b + 5 * kPage <= c));
  CHECK(driver.release(0, a, 3 * kPage) == Status::ok);
  CHECK(reserve(driver, 3 * kPage) == a);
  Address none = 0;
  CHECK(driver.reserve(0, Bytes{1} << 47, kPage, &none) == Status::out_of_memory);
}

TEST_CASE("without virtual memory only segments work") {
  ModelOptions options = small();
  options.virtual_memory = false;
  ModelDriver driver(options);
  Address address = 0;
  PhysicalHandle handle = 0;
  CHECK(driver.reserve(0, kPage, kPage, &address) == Status::not_supported);
  CHECK(driver.create(0, kPage, &handle) == Status::not_supported);
  CHECK(driver.allocate_segment(0, kPage, &address) == Status::ok);
  DeviceInfo info;
  CHECK((driver.device_info(0, &info) == Status::ok && !info.virtual_memory));
  CHECK(driver.free_segment(0, address) == Status::ok);
  CHECK_MISUSE(driver, driver.free_segment(0, address), "not the start");
}

TEST_CASE("a lagging event completes when time has passed and in order") {
  ModelOptions options = small();
  options.event_lag = 10;
  ModelDriver driver(options);
  EventHandle first = event(driver);
  EventHandle second = event(driver);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, first) == Status::ok);  // never recorded
  CHECK(driver.record_event(0, first, 7) == Status::ok);
  driver.set_stream_lag(0, 7, 2);
  CHECK(driver.record_event(0, second, 7) == Status::ok);
  driver.advance(9);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, first) == Status::not_ready);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, second) ==
        Status::not_ready);  // behind the first, whatever its own lag
  driver.advance(1);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, first) == Status::ok);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, second) == Status::ok);
}

TEST_CASE("a wait orders one stream behind another") {
  ModelOptions options = small();
  options.event_lag = 5;
  ModelDriver driver(options);
  driver.set_stream_lag(0, 1, 100);
  EventHandle slow = event(driver);
  EventHandle fast = event(driver);
  CHECK(driver.record_event(0, slow, 1) == Status::ok);
  CHECK(driver.stream_wait_event(0, 2, slow) == Status::ok);
  CHECK(driver.record_event(0, fast, 2) == Status::ok);
  driver.advance(99);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, fast) == Status::not_ready);
  CHECK(driver.synchronize_event(MayAsk::unchecked(), 0, fast) == Status::ok);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, slow) == Status::ok);
  CHECK(driver.record_event(0, slow, 1) == Status::ok);
  CHECK(driver.synchronize_device(NoCapture::unchecked(), 1) == Status::ok);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, slow) == Status::not_ready);
  CHECK(driver.synchronize_device(NoCapture::unchecked(), 0) == Status::ok);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, slow) == Status::ok);
}

TEST_CASE("waiting for a device waits for work that has no event") {
  ModelOptions options = small();
  options.event_lag = 5;
  ModelDriver driver(options);
  const std::uint64_t begun = driver.now(0);
  CHECK(driver.synchronize_device(NoCapture::unchecked(), 0) == Status::ok);
  CHECK(driver.now(0) == begun + 5);
  driver.set_stream_lag(0, 1, 100);
  CHECK(driver.synchronize_device(NoCapture::unchecked(), 0) == Status::ok);
  CHECK(driver.now(0) == begun + 105);
}

TEST_CASE("broken rules of events and captures are refused") {
  ModelDriver driver(small());
  Address a = reserve(driver, kPage);
  CHECK(driver.map(0, a, kPage, create(driver, kPage)) == Status::ok);
  EventHandle outside = event(driver);
  EventHandle inside = event(driver);
  CHECK(driver.record_event(0, outside, 3) == Status::ok);
  bool capturing = true;
  CHECK((driver.stream_capturing(0, 3, &capturing) == Status::ok && !capturing));
  driver.begin_capture(0, 3);
  CHECK_THROWS_AS(driver.begin_capture(0, 3), UsageError);
  CHECK((driver.stream_capturing(0, 3, &capturing) == Status::ok && capturing));
  CHECK((driver.stream_capturing(0, 4, &capturing) == Status::ok && !capturing));
  CHECK(driver.query_event(MayAsk::unchecked(), 0, outside) == Status::ok);  // its work is none of the capture's
  CHECK(driver.synchronize_event(MayAsk::unchecked(), 0, outside) == Status::ok);
  CHECK_MISUSE(driver, driver.synchronize_device(NoCapture::unchecked(), 0), "during a capture");
  CHECK_MISUSE(driver, driver.unmap(0, a, kPage), "during a capture");
  CHECK_MISUSE(driver, driver.stream_wait_event(0, 3, outside), "same capture");
  CHECK(driver.record_event(0, inside, 3) == Status::ok);
  CHECK(driver.stream_wait_event(0, 4, inside) == Status::ok);  // draws stream 4 into the capture
  CHECK((driver.stream_capturing(0, 4, &capturing) == Status::ok && capturing));
  CHECK_MISUSE(driver, driver.query_event(MayAsk::unchecked(), 0, inside), "belongs to a capture");
  CHECK_MISUSE(driver, driver.synchronize_event(MayAsk::unchecked(), 0, inside), "belongs to a capture");
  CHECK(driver.query_event(MayAsk::unchecked(), 1, outside) == Status::failed);
  driver.end_capture(0, 3);
  CHECK((driver.stream_capturing(0, 4, &capturing) == Status::ok && !capturing));
  CHECK(driver.query_event(MayAsk::unchecked(), 0, outside) == Status::ok);
  CHECK_MISUSE(driver, driver.query_event(MayAsk::unchecked(), 0, inside), "belongs to a capture");
  CHECK_MISUSE(driver, driver.stream_wait_event(0, 4, inside), "same capture");
  CHECK(driver.record_event(0, inside, 3) == Status::ok);
  CHECK(driver.query_event(MayAsk::unchecked(), 0, inside) == Status::ok);
  CHECK(driver.destroy_event(0, inside) == Status::ok);
  CHECK_MISUSE(driver, driver.destroy_event(0, inside), "not a live event");
  CHECK_MISUSE(driver, driver.record_event(0, inside, 3), "not a live event");
  CHECK_THROWS_AS(driver.end_capture(0, 3), UsageError);
}

TEST_CASE("the nth call of a kind fails and changes nothing") {
  ModelDriver driver(small());
  PhysicalHandle handle = 0;
  driver.fail(DriverCall::create, 2, Status::out_of_memory);
  driver.fail(DriverCall::create, 3, Status::failed);
  driver.fail(DriverCall::destroy, 1, Status::failed);
  CHECK(driver.create(0, kPage, &handle) == Status::ok);
  PhysicalHandle untouched = 42;
  CHECK((driver.create(0, kPage, &untouched) == Status::out_of_memory && untouched == 42));
  CHECK(driver.create(0, kPage, &untouched) == Status::failed);
  CHECK(driver.used_bytes(0) == kPage);
  CHECK(driver.create(0, kPage, &handle) == Status::ok);
  CHECK(driver.destroy(0, handle) == Status::failed);
  CHECK(driver.last_error().find("destroy") != std::string::npos);
  CHECK(driver.destroy(0, handle) == Status::ok);
  CHECK(driver.violations() == 0);
}

TEST_CASE("impossible devices are refused") {
  ModelOptions options;
  options.devices = 0;
  CHECK_THROWS_AS(ModelDriver{options}, UsageError);
  options = {};
  options.granularity = 3000;
  CHECK_THROWS_AS(ModelDriver{options}, UsageError);
  ModelDriver driver;
  CHECK_THROWS_AS(driver.used_bytes(1), UsageError);
  DeviceInfo info;
  CHECK((driver.device_info(-1, &info) == Status::failed && !driver.last_error().empty()));
}

TEST_CASE("a stream that belongs to a device is none of another") {
  ModelOptions options;
  options.devices = 2;
  ModelDriver driver(options);
  EventHandle here = 0;
  CHECK(driver.create_event(0, &here) == Status::ok);
  DeviceIndex device = 7;
  CHECK(driver.record_event(0, here, 5) == Status::ok);
  CHECK((driver.stream_device(5, &device) == Status::not_supported && device == 7));  // nobody has said so yet
  driver.add_stream(1, 5);
  CHECK((driver.stream_device(5, &device) == Status::ok && device == 1));
  CHECK_MISUSE(driver, driver.record_event(0, here, 5), "is one of device 1");
  CHECK_MISUSE(driver, driver.stream_wait_event(0, 5, here), "is one of device 1");
  EventHandle there = 0;
  CHECK((driver.create_event(1, &there) == Status::ok && driver.record_event(1, there, 5) == Status::ok));
  CHECK(driver.record_event(0, here, 6) == Status::ok);
}

TEST_CASE("calls are counted by kind failures included") {
  ModelDriver model(small());
  CountingDriver driver(model);
  CHECK(driver.calls().empty());
  CHECK(driver.device_count() == 2);
  PhysicalHandle handle = create(driver, kPage);
  CHECK(driver.destroy(0, handle) == Status::ok);
  CHECK(driver.destroy(0, handle) == Status::failed);
  CHECK(driver.last_error() == model.last_error());
  std::map<std::string, std::uint64_t> expected = {{"create", 1}, {"destroy", 2}};
  CHECK(driver.calls() == expected);
  CHECK(driver.calls(DriverCall::destroy) == 2);
}

// Forty handles under one call cost forty times one: the work is counted by handles, whatever the number of calls.
TEST_CASE("work is counted by handles and their pages") {
  ModelDriver model(small());
  CountingDriver driver(model);
  CHECK(driver.work().empty());
  const Address base = reserve(driver, 200 * kPage);
  const PhysicalHandle five = create(driver, 5 * kPage), one = create(driver, kPage);
  CHECK(driver.map(0, base + 62 * kPage, 5 * kPage, five) == Status::ok);  // over the edge of a word of 64 pages
  CHECK(driver.map(0, base + 67 * kPage, kPage, one) == Status::ok);
  CHECK(driver.map(0, base + 100 * kPage, 5 * kPage, five) == Status::ok);  // an alias
  CHECK(driver.map(0, base + 150 * kPage, kPage, five) == Status::failed);  // not the whole handle
  CHECK(driver.allow_access(0, base + 62 * kPage, 6 * kPage) == Status::ok);
  CHECK(driver.allow_access(0, base + 100 * kPage, 5 * kPage) == Status::ok);
  std::map<std::string, std::uint64_t> expected = {
      {"reserve", 1},    {"create", 2},       {"create_pages", 6},       {"map", 3},
      {"map_pages", 11}, {"allow_access", 3}, {"allow_access_pages", 11}};
  CHECK(driver.work() == expected);
  CHECK(driver.unmap(0, base + 62 * kPage, 6 * kPage) == Status::ok);
  CHECK(driver.unmap(0, base + 62 * kPage, 6 * kPage) == Status::failed);
  CHECK(driver.map(0, base + 67 * kPage, 5 * kPage, five) == Status::ok);
  CHECK(driver.unmap(0, base + 67 * kPage, 5 * kPage) == Status::ok);
  CHECK((driver.destroy(0, five) == Status::ok && driver.destroy(0, five) == Status::failed));
  expected["unmap"] = 3;
  expected["unmap_pages"] = 11;
  expected["map"] = 4;
  expected["map_pages"] = 16;
  expected["destroy"] = 1;
  expected["destroy_pages"] = 5;
  CHECK(driver.work() == expected);
}

TEST_CASE("the work of segments and of peers is counted") {
  ModelDriver model(small());
  CountingDriver driver(model);
  Address segment = 0;
  CHECK(driver.allocate_segment(0, 3 * kPage - 1, &segment) == Status::ok);
  Address none = 0;
  CHECK(driver.allocate_segment(0, 100 * kPage, &none) == Status::out_of_memory);
  CHECK(driver.free_segment(0, segment + kPage) == Status::failed);
  CHECK(driver.free_segment(0, segment) == Status::ok);
  std::map<std::string, std::uint64_t> expected = {
      {"allocate_segment", 1}, {"allocate_segment_pages", 3}, {"free_segment", 1}, {"free_segment_pages", 3}};
  CHECK(driver.work() == expected);
  driver.allow_peer(0, 1);
  const Address base = reserve(driver, 4 * kPage);
  CHECK(driver.map(0, base, 2 * kPage, create(driver, 2 * kPage)) == Status::ok);
  CHECK(driver.allow_access(0, base, 2 * kPage) == Status::ok);
  CHECK((driver.work()["allow_access"] == 2 && driver.work()["allow_access_pages"] == 4));  // one call, two devices
}

TEST_CASE("many threads keep the accounts exact") {
  ModelOptions options;
  options.memory_bytes = Bytes{1} << 40;
  ModelDriver model(options);
  CountingDriver driver(model);
  constexpr int kThreads = 4;
  constexpr int kRounds = 2000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      Address base = reserve(driver, 4 * kPage);
      EventHandle done = event(driver);
      for (int round = 0; round < kRounds; ++round) {
        PhysicalHandle handle = create(driver, 2 * kPage);
        CHECK(driver.map(0, base, 2 * kPage, handle) == Status::ok);
        CHECK(driver.map(0, base + 2 * kPage, 2 * kPage, handle) == Status::ok);
        CHECK(driver.allow_access(0, base, 4 * kPage) == Status::ok);
        CHECK(driver.record_event(0, done, static_cast<StreamId>(t)) == Status::ok);
        CHECK(driver.query_event(MayAsk::unchecked(), 0, done) == Status::ok);
        CHECK(driver.destroy(0, handle) == Status::ok);
        CHECK(driver.unmap(0, base, 4 * kPage) == Status::ok);
      }
      CHECK(driver.release(0, base, 4 * kPage) == Status::ok);
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(model.used_bytes(0) == 0);
  CHECK(model.violations() == 0);
  CHECK(driver.calls(DriverCall::map) == 2 * kThreads * kRounds);
  auto work = driver.work();
  for (const char* kind : {"map", "allow_access", "unmap"}) {
    CHECK(work[kind] == 2 * kThreads * kRounds);
    CHECK(work[std::string(kind) + "_pages"] == 4 * kThreads * kRounds);
  }
}

}  // namespace
