// Threads against one allocator: several streams each, frees from other threads, record_stream, events that lag,
// trimming and pools that come and go meanwhile, on a device that is too small. Every piece of physical memory carries
// a mark of the block that has it, and knows when the work of the blocks before is done.
//
// Meant for the sanitizers (POOLALLOC_TSAN, POOLALLOC_ASAN), where it takes seconds.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "core/allocator.h"
#include "driver/model_driver.h"
#include "forwarding_driver.h"

using namespace poolalloc;

namespace {

constexpr int kThreads = 4;
constexpr int kStreams = 8;
constexpr StreamId kAside = 1000;  // a stream that uses blocks of the others
constexpr Bytes kKiB = 1 << 10;
constexpr std::uint64_t kLag = 20;

StreamId stream_of(unsigned index) { return 16 * (StreamId{index % kStreams} + 1); }

ModelOptions device_of(std::uint64_t pages) {
  ModelOptions options;
  options.memory_bytes = pages * kPageBytes;
  options.event_lag = kLag;
  return options;
}

// Waiting for the device takes a while, as it does on a real one: time for the other threads to get in between.
class SlowDriver final : public ForwardingDriver {
 public:
  using ForwardingDriver::ForwardingDriver;
  Status synchronize_event(Device device, Event event) override {
    std::this_thread::sleep_for(std::chrono::microseconds(300));
    return ForwardingDriver::synchronize_event(device, event);
  }
};

struct Block {
  struct Piece {
    PhysicalHandle handle;
    Bytes first, end;
  };
  Address address = 0;
  Bytes bytes = 0;
  StreamId stream = 0;
  bool used_aside = false;
  std::vector<Piece> pieces;
};

// Who has each piece of physical memory, and until when work may still be running there.
class Marks {
 public:
  explicit Marks(ModelDriver& model) : model_(model) {}

  void claim(Block& block) {
    for (Address at = block.address; at < block.address + block.bytes;) {
      PhysicalHandle handle = 0;
      Bytes offset = 0;
      CHECK(model_.physical(0, at, &handle, &offset));
      const Bytes length = std::min(kPageBytes - offset, block.address + block.bytes - at);
      block.pieces.push_back({handle, offset, offset + length});
      at += length;
    }
    const std::uint64_t now = model_.now(0);
    std::lock_guard guard(mutex_);
    for (const Block::Piece& piece : block.pieces) {
      Page& page = pages_[piece.handle];
      for (const Block::Piece& other : page.live) CHECK(piece.end <= other.first || other.end <= piece.first);
      for (const auto& [stream, done_at] : page.done_at) CHECK(stream == block.stream || done_at <= now);
      for (const Aside& use : page.aside) CHECK(piece.end <= use.first || use.end <= piece.first || use.done_at <= now);
      std::erase_if(page.aside, [&](const Aside& use) { return use.done_at <= now; });
      page.live.push_back(piece);
    }
  }
  // Just before the block is freed.
  void release(const Block& block) {
    // The memory under it is what it was.
    Address at = block.address;
    for (const Block::Piece& piece : block.pieces) {
      PhysicalHandle handle = 0;
      Bytes offset = 0;
      CHECK(model_.physical(0, at, &handle, &offset) && handle == piece.handle && offset == piece.first);
      at += piece.end - piece.first;
    }
    const std::uint64_t done_at = model_.now(0) + kLag;
    std::lock_guard guard(mutex_);
    for (const Block::Piece& piece : block.pieces) {
      Page& page = pages_[piece.handle];
      std::erase_if(page.live, [&](const Block::Piece& other) { return other.first == piece.first; });
      page.done_at[block.stream] = done_at;
      if (block.used_aside) page.aside.push_back({piece.first, piece.end, done_at});
    }
  }

 private:
  struct Aside {
    Bytes first, end;
    std::uint64_t done_at;
  };
  struct Page {
    std::vector<Block::Piece> live;
    std::unordered_map<StreamId, std::uint64_t> done_at;
    std::vector<Aside> aside;
  };
  ModelDriver& model_;
  std::mutex mutex_;
  std::unordered_map<PhysicalHandle, Page> pages_;
};

// Blocks that one thread made and another frees.
class Exchange {
 public:
  void give(Block block) {
    std::lock_guard guard(mutex_);
    blocks_.push_back(std::move(block));
  }
  bool take(Block* block) {
    std::lock_guard guard(mutex_);
    if (blocks_.empty()) return false;
    *block = std::move(blocks_.back());
    blocks_.pop_back();
    return true;
  }

 private:
  std::mutex mutex_;
  std::vector<Block> blocks_;
};

struct Stress {
  explicit Stress(std::uint64_t device_pages)
      : model(device_of(device_pages)), slow(model), allocator(slow, Options{}), marks(model) {}

  // False if there was no memory.
  bool allocate(Bytes bytes, StreamId stream, std::vector<Block>& own) {
    Block block;
    try {
      block.address = allocator.allocate(bytes, 0, stream);
    } catch (const OutOfMemory&) {
      ++out_of_memory;
      return false;
    }
    block.stream = stream;
    CHECK(allocator.base_allocation(block.address, &block.bytes) == block.address && block.bytes >= bytes);
    marks.claim(block);
    own.push_back(std::move(block));
    return true;
  }
  void free(Block block) {
    marks.release(block);
    allocator.free(block.address);
  }
  void free_one(std::vector<Block>& own, std::size_t index) {
    std::swap(own[index], own.back());
    free(std::move(own.back()));
    own.pop_back();
  }
  void finish() {
    Block block;
    while (exchange.take(&block)) free(std::move(block));
    for (int i = 0; i < 2; ++i) {
      model.advance(2 * kLag);
      allocator.empty_cache();
    }
    allocator.validate();
    CHECK(model.violations() == 0);
    CHECK(allocator.stats(0).live_blocks == 0 && allocator.stats(0).pending.current == 0);
    CHECK(allocator.stats(0).requested.current == 0 && allocator.stats(0).live.current == 0);
    CHECK(model.used_bytes(0) == 0);
  }

  ModelDriver model;
  SlowDriver slow;
  Allocator allocator;
  Marks marks;
  Exchange exchange;
  std::atomic<std::uint64_t> out_of_memory{0};
};

void run(int count, const std::function<void(unsigned)>& body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < count; ++t) threads.emplace_back(body, static_cast<unsigned>(t));
  for (std::thread& thread : threads) thread.join();
}

// What one thread does at random; `own` are the blocks it is to free.
void step(Stress& stress, std::mt19937& random, unsigned thread, std::vector<Block>& own) {
  const unsigned what = random() % 1000;
  // Mostly the thread's own two streams, so that heaps are shared but seldom.
  const StreamId stream = stream_of(random() % 8 == 0 ? random() : 2 * thread + random() % 2);
  if (what < 480) {
    const Bytes sizes[] = {1 + random() % (8 * kKiB), 1 + random() % (256 * kKiB), 1 + random() % (6 * kPageBytes),
                           (1 + random() % 6) * kPageBytes};
    if (!stress.allocate(sizes[random() % 4], stream, own))
      for (std::size_t i = own.size() / 2; i-- > 0;) stress.free_one(own, i);
  } else if (what < 800) {
    if (!own.empty()) stress.free_one(own, random() % own.size());
  } else if (what < 870) {
    if (own.empty()) return;
    stress.exchange.give(std::move(own.back()));
    own.pop_back();
  } else if (what < 930) {
    Block block;
    if (stress.exchange.take(&block)) stress.free(std::move(block));
  } else if (what < 970) {
    if (own.empty()) return;
    Block& block = own[random() % own.size()];
    block.used_aside = true;
    stress.allocator.record_stream(block.address, kAside);
  } else if (what < 990) {
    stress.model.advance(1 + random() % kLag);
  } else if (what < 992) {
    stress.allocator.empty_cache();
  } else if (what < 995) {
    const Bytes target = random() % 64 * kPageBytes;
    stress.allocator.trim(target, 0, random() % 4 == 0);
  } else if (what < 996) {
    const DeviceStats stats = stress.allocator.stats(0);
    CHECK(stats.limit_bytes <= stats.total_bytes && stress.allocator.memory_fraction(0) <= 1);
  } else if (what < 998) {
    if (random() % 2 == 0)
      stress.allocator.set_memory_fraction(random() % 2 == 0 ? 1.0 : 0.7, 0);
    else
      stress.allocator.set_memory_limit(random() % 2 == 0 ? 0 : 60 * kPageBytes, 0);
  } else {
    CHECK_THROWS(stress.allocator.free(Address{4096} * (1 + thread)), UsageError);
  }
}

// A pool of one stream, as torch makes it for a capture or a memory pool, left with its blocks still live.
void use_a_pool(Stress& stress, std::mt19937& random, std::uint64_t name, std::vector<Block>& own) {
  const StreamId stream = 5000 + name % kThreads;
  const PoolId pool{name, 1};
  stress.allocator.begin_allocate_to_pool(0, pool, [stream](StreamId asked) { return asked == stream; });
  for (int i = 0; i < 6; ++i) {
    stress.allocate(1 + random() % (3 * kPageBytes), stream, own);
    if (i % 2 == 1 && !own.empty()) stress.free_one(own, own.size() - 1);
  }
  stress.allocator.end_allocate_to_pool(0, pool);
  stress.allocator.release_pool(0, pool);
}

// Gives back what threads have left to each other, and allocates in the middle of that.
bool free_exchanged(Stress& stress) {
  Block block;
  const bool any = stress.exchange.take(&block);
  if (any) stress.free(std::move(block));
  std::vector<Block> own;
  if (stress.allocate(1 + kKiB, kAside, own)) stress.free_one(own, 0);
  return any;
}

TEST(no_piece_of_memory_has_two_owners_and_no_work_is_disturbed) {
  Stress stress(96);
  stress.allocator.oom_callbacks().add([&](DeviceIndex, Bytes) { return free_exchanged(stress); });
  run(kThreads, [&](unsigned thread) {
    std::mt19937 random(thread + 1);
    std::vector<Block> own;
    for (int i = 0; i < 6000; ++i) step(stress, random, thread, own);
    while (!own.empty()) stress.free_one(own, own.size() - 1);
  });
  CHECK(stress.out_of_memory > 0);  // there was pressure
  const DeviceStats stats = stress.allocator.stats(0);
  CHECK(stats.pages_stolen > 0 && stats.after_stealing > 0 && stats.after_callbacks > 0 && stats.after_waiting > 0);
  CHECK(stats.retries == stats.after_unmapping + stats.after_stealing + stats.after_callbacks + stats.after_waiting +
                             stats.after_trimming + stats.after_lending + stats.out_of_memory);
  stress.finish();
}

TEST(pools_come_and_go_under_the_other_threads) {
  Stress stress(160);
  run(kThreads, [&](unsigned thread) {
    std::mt19937 random(thread + 100);
    std::vector<Block> own;
    for (int i = 0; i < 3000; ++i) {
      if (i % 60 == 0) use_a_pool(stress, random, (StreamId{thread} << 32) + static_cast<unsigned>(i), own);
      step(stress, random, thread, own);
    }
    while (!own.empty()) stress.free_one(own, own.size() - 1);
  });
  stress.finish();
  CHECK(stress.allocator.stats(0).heaps.size() <= kStreams);  // the pools are gone
}

// Each thread's blocks lie on so many pages at most that all of them fit: nobody may run out, though most of the memory
// is idle on another stream, or on its way from there, when it is needed.
TEST(what_fits_never_runs_out) {
  constexpr Bytes kEach = 44;
  Stress stress(kThreads * kEach);
  run(kThreads, [&](unsigned thread) {
    std::mt19937 random(thread + 200);
    std::vector<Block> own;
    Bytes pages = 0;
    for (int i = 0; i < 2500; ++i) {
      const Bytes wanted = 1 + random() % 12;
      while (pages + wanted + 1 > kEach) {
        const std::size_t index = random() % own.size();
        pages -= own[index].bytes / kPageBytes + 1;
        stress.free_one(own, index);
      }
      CHECK(stress.allocate(wanted * kPageBytes, stream_of(2 * thread + random() % 2), own));
      pages += wanted + 1;
    }
    while (!own.empty()) stress.free_one(own, own.size() - 1);
  });
  CHECK(stress.out_of_memory == 0);
  stress.finish();
}

}  // namespace
