// The process has no memory left for what the allocator keeps of its own: single pieces of it refused in turn, in the
// middle of a program that does everything. Either the call throws std::bad_alloc and everything still holds, or the
// process ends there (heap.h): nothing goes on with tables that are half changed.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <new>
#include <random>
#include <source_location>

#include "core/allocator.h"
#include "driver/model_driver.h"
#include "effort.h"
#include "faulty_driver.h"
#include "page_checker.h"

namespace {

thread_local std::uint64_t left = 0;  // pieces until one is refused, that one included; 0: none is
thread_local bool counting = false;   // in a call of the allocator
thread_local bool refused = false;

bool refuses() {
  if (!counting || FaultyDriver::inside() || left == 0 || --left > 0) return false;
  refused = true;
  return true;
}

}  // namespace

// Not inline: gcc would see a pointer of operator new's end in std::free, and warn.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  void* memory = refuses() ? nullptr : std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return refuses() ? nullptr : std::malloc(bytes);
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto multiple = static_cast<std::size_t>(alignment);
  void* memory = refuses() ? nullptr : std::aligned_alloc(multiple, (bytes + multiple - 1) / multiple * multiple);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new[](std::size_t bytes) { return operator new(bytes); }
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using namespace poolalloc;

constexpr std::uint64_t kLag = 20;

// A child process that finds something wrong ends at once, with an exit code that is none of Outcome's.
void must(bool holds, std::source_location where = std::source_location::current()) {
  if (holds) return;
  std::fprintf(stderr, "%s:%u: this does not hold\n", where.file_name(), static_cast<unsigned>(where.line()));
  _exit(EXIT_FAILURE);
}

struct Program {
  explicit Program(bool virtual_memory)
      : model([&] {
          ModelOptions device;
          device.memory_bytes = 40 * kPageBytes;
          device.event_lag = kLag;
          device.virtual_memory = virtual_memory;
          return device;
        }()),
        checker(model),
        driver(checker),
        allocator(driver, Options{}) {}

  // False if there was no memory of one kind or the other.
  template <typename Call>
  bool done(Call call) {
    counting = true;
    bool all = false;
    try {
      call();
      all = true;
    } catch (const std::bad_alloc&) {
      counting = false;
      must(refused);
    } catch (const OutOfMemory&) {
    }
    counting = false;
    return all;
  }

  void allocate(Bytes bytes, StreamId stream, PoolId pool = {}) {
    Address address = 0;
    if (!done([&] { address = allocator.allocate(bytes, 0, stream); })) return;
    Bytes rounded = 0;
    must(allocator.base_allocation(address, &rounded) == address);
    live[address] = checker.allocated(0, stream, address, rounded, pool);
  }
  void free(Address address) {
    checker.freed(live.at(address));
    if (!done([&] { allocator.free(address); })) done([&] { allocator.free(address); });
    live.erase(address);
  }
  Address any() { return std::next(live.begin(), static_cast<std::ptrdiff_t>(random() % live.size()))->first; }

  void step() {
    const unsigned what = random() % 100;
    const StreamId stream = 16 * (1 + random() % 3);
    if (what < 50) {
      const Bytes sizes[] = {1 + random() % 8192, 1 + random() % (256 << 10), 1 + random() % (4 * kPageBytes)};
      allocate(sizes[random() % 3], stream);
    } else if (what < 80) {
      if (!live.empty()) free(any());
    } else if (what < 87) {
      if (live.empty()) return;
      const Address address = any();
      checker.used(live.at(address), 1000);
      if (!done([&] { allocator.record_stream(address, {0, 1000}); })) allocator.record_stream(address, {0, 1000});
    } else if (what < 90) {
      model.advance(1 + random() % kLag);
    } else if (what < 93) {
      done([&] { allocator.trim(random() % 20 * kPageBytes, 0, random() % 2 == 0); });
    } else if (what < 95) {
      done([&] { allocator.empty_cache(); });
    } else if (what < 97) {
      done([&] { allocator.stats(0); });
    } else {
      use_pool();
    }
  }
  void use_pool() {
    const PoolId pool{++pools, 1};
    while (!done([&] { allocator.begin_allocate_to_pool(0, pool, [](StreamId asked) { return asked == 16; }); })) {
    }
    for (int i = 0; i < 3; ++i) allocate(1 + random() % kPageBytes, 16, pool);
    allocator.end_allocate_to_pool(0, pool);
    done([&] { allocator.release_pool(0, pool); });
  }

  ModelDriver model;
  PageChecker checker;
  FaultyDriver driver;
  Allocator allocator;
  std::map<Address, PageChecker::Block> live;
  std::mt19937 random{5};
  std::uint64_t pools = 0;
};

// False if fewer pieces are needed.
bool survives_refusal_of(std::uint64_t nth, bool virtual_memory) {
  Program program(virtual_memory);
  refused = false;
  left = nth;
  for (int step = 0; step < 250; ++step) {
    const bool before = refused;
    program.step();
    if (refused != before || step % 50 == 0) program.allocator.validate();
  }
  left = 0;
  while (!program.live.empty()) program.free(program.live.begin()->first);
  for (int i = 0; i < 2; ++i) {
    program.model.advance(2 * kLag);
    program.allocator.empty_cache();
  }
  program.allocator.validate();
  for (const auto& finding : program.checker.findings()) std::fprintf(stderr, "%s\n", finding.text.c_str());
  must(program.checker.findings().empty() && program.model.violations() == 0);
  must(program.allocator.stats(0).requested.current == 0 && program.allocator.stats(0).pending.current == 0);
  must(program.model.used_bytes(0) == 0);
  return refused;
}

enum Outcome : int { kSurvived = 10, kEnded, kNotNeeded };  // exit codes; that of a failed check is another

// In a process of its own, which may end.
int outcome_of(std::uint64_t nth, bool virtual_memory) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    std::set_terminate([] {
      // Where a function that is noexcept has objects to destroy, gcc ends the program with nothing caught.
      const std::exception_ptr thrown = std::current_exception();
      if (thrown == nullptr) _exit(refused ? kEnded : EXIT_FAILURE);
      try {
        std::rethrow_exception(thrown);
      } catch (const std::bad_alloc&) {
        _exit(kEnded);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
      }
      std::abort();
    });
    _exit(survives_refusal_of(nth, virtual_memory) ? kSurvived : kNotNeeded);
  }
  int status = 0;
  CHECK((waitpid(child, &status, 0) == child && WIFEXITED(status)));
  return WEXITSTATUS(status);
}

TEST_CASE("nothing goes on with tables that are half changed") {
  for (const bool virtual_memory : {true, false}) {
    std::map<int, int> count;
    for (std::uint64_t nth = 1; count[kNotNeeded] == 0; nth += stress::stride(7)) {
      const int outcome = outcome_of(nth, virtual_memory);
      REQUIRE((outcome == kSurvived || outcome == kEnded || outcome == kNotNeeded));
      ++count[outcome];
    }
    std::printf("  %d refused: %d survived, %d ended\n", count[kSurvived] + count[kEnded], count[kSurvived],
                count[kEnded]);
    CHECK((count[kSurvived] > 10 && count[kEnded] > 10));
  }
}

}  // namespace
