// Blocks that several processes use: what a name leads to, how long it does, and what stays where while it does. The
// model stands for both processes: what it exported it imports again, at other addresses.
#include <doctest/doctest.h>
#include <unistd.h>

#include <stdexcept>
#include <vector>

#include "core/allocator.h"
#include "driver/model_driver.h"
#include "growing.h"

using namespace poolalloc;

namespace {

constexpr Bytes kMiB = Bytes{1} << 20;

struct Process {
  explicit Process(std::uint64_t device_pages = 128, bool shareable = true, bool segments = false,
                   std::string_view growth = "tight")
      : model([&] {
          ModelOptions options;
          options.memory_bytes = device_pages * kPageBytes;
          options.shareable = shareable;
          return options;
        }()),
        allocator(model, [&] {
          Options options = growing(growth);
          options.segments = segments;
          return options;
        }()) {}
  ~Process() {
    for (const SharedPiece& each : pieces) close(each.descriptor);
    allocator.validate();
    CHECK(model.violations() == 0);
  }

  PhysicalHandle under(Address address) const {
    PhysicalHandle handle = 0;
    Bytes offset = 0;
    CHECK(model.physical(0, address, &handle, &offset));
    return handle;
  }
  bool export_all(const SharedBlock& block) {
    return allocator.export_pieces(block, 0, block.bytes / kPageBytes + pieces.size(), &pieces);
  }
  // As another process would. The descriptors are of a block whose export has just been asked for.
  Address open(const SharedBlock& block) {
    std::size_t next = pieces.size();
    CHECK(export_all(block));
    return allocator.open_shared(0, block.bytes / kPageBytes, [&](std::size_t) { return pieces[next++]; });
  }

  ModelDriver model;
  Allocator allocator;
  std::vector<SharedPiece> pieces;
};

TEST_CASE("whoever opens a block sees its pages") {
  Process process;
  for (const Bytes bytes : {Bytes{700}, Bytes{300} << 10, 9 * kMiB}) {
    const Address beside = process.allocator.allocate(bytes, 0, 0);
    const Address address = process.allocator.allocate(bytes, 0, 0);
    const SharedBlock block = process.allocator.share(address + bytes / 2);  // anywhere in it
    CHECK((block.block == address && block.device == 0 && block.id != 0));
    CHECK((block.pages % kPageBytes == 0 && block.bytes % kPageBytes == 0));
    CHECK((block.pages <= address && address + bytes <= block.pages + block.bytes));
    const SharedBlock again = process.allocator.share(address);
    CHECK((again.id == block.id && again.pages == block.pages));
    CHECK(process.allocator.share(beside).id != block.id);
    const Address opened = process.open(block);
    CHECK(!process.allocator.owns(opened));
    for (Bytes page = 0; page < block.bytes; page += kPageBytes)
      CHECK(process.under(opened + page) == process.under(block.pages + page));
    process.allocator.close_shared(0, opened);
    PhysicalHandle handle = 0;
    Bytes offset = 0;
    CHECK(!process.model.physical(0, opened, &handle, &offset));
  }
}

TEST_CASE("a name ends with its block") {
  Process process;
  const Address first = process.allocator.allocate(3 * kMiB, 0, 0);
  const SharedBlock name = process.allocator.share(first);
  CHECK(process.export_all(name));
  process.allocator.free(first);
  CHECK(!process.export_all(name));
  const Address second = process.allocator.allocate(3 * kMiB, 0, 0);
  CHECK(second == first);
  CHECK(!process.export_all(name));  // at its address, but another
  const SharedBlock other = process.allocator.share(second);
  CHECK((other.id != name.id && process.export_all(other) && !process.export_all(name)));
  process.allocator.record_stream(second, {0, 7});
  process.allocator.free(second);  // pending
  CHECK(!process.export_all(other));
  CHECK_THROWS_AS(process.allocator.share(second + 64 * kMiB), UsageError);
  SharedBlock invented = other;
  invented.block += 512;
  CHECK(!process.export_all(invented));
  invented.block = 4096;
  CHECK(!process.export_all(invented));
}

TEST_CASE("only the pages of the block are given out") {
  Process process;
  const SharedBlock block = process.allocator.share(process.allocator.allocate(9 * kMiB, 0, 0));
  const std::size_t pages = block.bytes / kPageBytes;
  CHECK(process.allocator.export_pieces(block, 0, 64, &process.pieces));
  std::size_t shared = 0;
  for (const SharedPiece& piece : process.pieces) shared += piece.pages;
  CHECK(shared == pages);
  std::vector<SharedPiece> none;
  CHECK(!process.allocator.export_pieces(block, pages, 1, &none));
  CHECK(!process.allocator.export_pieces(block, 0, 0, &none));
  CHECK(none.empty());
}

TEST_CASE("a piece of many pages is opened whole") {
  Process process(128, true, false, "balanced");
  const Address shared = process.allocator.allocate(9 * kMiB, 0, 0);
  const SharedBlock block = process.allocator.share(shared);
  CHECK((block.pages <= shared && shared + 9 * kMiB <= block.pages + block.bytes));
  const Address opened = process.open(block);
  CHECK((process.pieces.size() == 1 && process.pieces[0].pages > 1));
  CHECK(process.under(opened + (shared - block.pages)) == process.under(shared));
  process.allocator.close_shared(0, opened);
}

TEST_CASE("what is open stays where it is and lives on") {
  Process process(64);
  const Address shared = process.allocator.allocate(9 * kMiB, 0, 0);
  const SharedBlock block = process.allocator.share(shared);
  const Address opened = process.open(block);
  std::vector<PhysicalHandle> before;
  for (Bytes page = 0; page < block.bytes; page += kPageBytes) before.push_back(process.under(opened + page));
  const auto unmoved = [&] {
    for (std::size_t page = 0; page < before.size(); ++page)
      if (process.under(opened + page * kPageBytes) != before[page]) return false;
    return true;
  };
  process.allocator.free(process.allocator.allocate(100 * kMiB, 0, 0));
  const Address others = process.allocator.allocate(100 * kMiB, 0, 5);  // takes all that is idle
  CHECK_THROWS_AS(process.allocator.allocate(100 * kMiB, 0, 0), OutOfMemory);
  process.allocator.empty_cache();
  for (Bytes page = 0; page < block.bytes; page += kPageBytes)
    CHECK(process.under(block.pages + page) == before[page / kPageBytes]);
  process.allocator.free(others);
  process.allocator.free(shared);
  process.allocator.empty_cache();
  CHECK(unmoved());  // although nobody here has it any more
  CHECK(process.model.used_bytes(0) == block.bytes);
  process.allocator.close_shared(0, opened);
  CHECK(process.model.used_bytes(0) == 0);
}

TEST_CASE("closing waits for the end of a capture") {
  Process process;
  const Address opened = process.open(process.allocator.share(process.allocator.allocate(3 * kMiB, 0, 0)));
  process.allocator.begin_capture(0);
  process.model.begin_capture(0, 9);
  process.allocator.close_shared(0, opened);
  process.under(opened);  // still there
  process.model.end_capture(0, 9);
  process.allocator.end_capture(0);
  process.allocator.close_shared(0, 0);  // any later call does what was put off
  PhysicalHandle handle = 0;
  Bytes offset = 0;
  CHECK(!process.model.physical(0, opened, &handle, &offset));
}

TEST_CASE("what cannot be opened leaves nothing behind") {
  Process process;
  const SharedBlock block = process.allocator.share(process.allocator.allocate(9 * kMiB, 0, 0));
  CHECK(process.export_all(block));
  const std::size_t pages = block.bytes / kPageBytes;
  const Bytes used = process.model.used_bytes(0);
  const auto third_fails = [&](std::size_t page) -> SharedPiece {
    if (page == 2) throw std::runtime_error("the other process has ended");
    return process.pieces[page];
  };
  CHECK_THROWS_AS(process.allocator.open_shared(0, pages, third_fails), std::runtime_error);
  for (const DriverCall call :
       {DriverCall::reserve, DriverCall::import_handle, DriverCall::map, DriverCall::allow_access}) {
    process.model.fail(call, 1, Status::failed);
    CHECK_THROWS_AS(process.allocator.open_shared(0, pages, [&](std::size_t page) { return process.pieces[page]; }),
                    DriverError);
  }
  CHECK((process.model.used_bytes(0) == used && process.model.failures_waiting() == 0));
  process.model.fail(DriverCall::export_handle, 2, Status::failed);
  CHECK_THROWS_AS(process.export_all(block), DriverError);
  CHECK(process.export_all(block));
}

TEST_CASE("memory that cannot be shared is refused") {
  Process alone(128, false);
  CHECK_THROWS_AS(alone.allocator.share(alone.allocator.allocate(3 * kMiB, 0, 0)), UsageError);
  Process whole(128, true, true);
  CHECK_THROWS_AS(whole.allocator.share(whole.allocator.allocate(3 * kMiB, 0, 0)), UsageError);
}

}  // namespace
