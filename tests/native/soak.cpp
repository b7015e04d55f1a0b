// A long life: threads that allocate and free at random for as many operations as asked, on a modelled device whose
// events lag, at a load that stays the same. From time to time all of them stop, and what must hold then is checked:
// every equation of validate(), and that nothing grows with time: not what is reserved, not the allocator's own memory.
//
//   native_soak [operations, default 1,000,000]
//
// Exit code 1 if something does not hold. The last line is one JSON object.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "core/allocator.h"
#include "driver/model_driver.h"

using namespace poolalloc;

namespace {

constexpr unsigned kThreads = 4;
constexpr unsigned kStreamsOfEach = 2;
constexpr int kWindows = 20;
constexpr Bytes kLiveOfEach = Bytes{512} << 20;  // stream
constexpr StreamId kAside = 1000;
constexpr std::size_t kMostWaiting = 64;  // blocks, for another thread to free
constexpr std::uint64_t kLag = 20;
constexpr Bytes kKiB = 1 << 10;

StreamId stream_of(unsigned index) { return 16 * (StreamId{index} + 1); }

struct Window {
  double seconds = 0;
  std::int64_t requested_peak = 0, reserved_peak = 0;
  std::uint64_t metadata = 0, mappings = 0, live_blocks = 0;
};

class Soak {
 public:
  explicit Soak(std::uint64_t operations)
      : of_each_(operations / kThreads), model_(lagging()), allocator_(model_, Options{}) {}

  void run() {
    std::barrier pause(kThreads, [this]() noexcept { end_window(); });
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < kThreads; ++thread)
      threads.emplace_back([this, thread, &pause] { live(thread, pause); });
    for (std::thread& thread : threads) thread.join();
    for (Inbox& inbox : inboxes_)
      for (const Address address : inbox.blocks) allocator_.free(address);
  }

  // The first quarter is for growing up. A leak would go on: half as many windows again would hold half as much more.
  bool steady() const {
    const auto early = windows_.begin() + kWindows / 4, late = windows_.begin() + kWindows * 5 / 8;
    const auto largest = [](auto first, auto end) {
      std::int64_t top = 0;
      for (; first != end; ++first) top = std::max(top, first->reserved_peak);
      return static_cast<double>(top);
    };
    const double growth = largest(late, windows_.end()) / largest(early, late);
    const bool reserved_steady = growth <= 1.05;
    std::printf("peak reserved of windows 13-20 over 6-12: %.4f, %s\n", growth,
                reserved_steady ? "steady" : "IT GROWS");
    // Tables of blocks, of slabs, which follow what is reserved, and of mappings.
    bool bounded = true;
    for (const Window& window : windows_)
      bounded &= window.metadata <=
                 64 * (window.live_blocks + window.mappings) + static_cast<std::uint64_t>(window.reserved_peak) / 1000;
    std::printf("metadata: %s than 64 B a block and a mapping, and 0.1 %% of what is reserved\n",
                bounded ? "no more" : "MORE");
    return reserved_steady && bounded;
  }

  // Of everything that was freed nothing is left.
  bool empty() {
    for (int i = 0; i < 2; ++i) {
      model_.advance(2 * kLag);
      allocator_.empty_cache();
    }
    allocator_.validate();
    const bool nothing_left = allocator_.stats(0).live_blocks == 0 && model_.used_bytes(0) == 0;
    if (!nothing_left) std::printf("something is left\n");
    const std::uint64_t metadata = allocator_.stats(0).metadata_bytes;
    const bool shed = metadata < windows_.back().metadata / 4;
    std::printf("metadata with nothing left: %llu, %s\n", static_cast<unsigned long long>(metadata),
                shed ? "less than a quarter" : "TOO MUCH");
    if (model_.violations() != 0) std::printf("the contract was broken: %s\n", model_.first_violation().c_str());
    return nothing_left && shed && model_.violations() == 0;
  }

  void print_result(bool sound) const {
    const DeviceStats stats = allocator_.stats(0);
    std::int64_t reserved = 0, requested = 0;
    std::uint64_t metadata = 0, mappings = 0;
    for (const Window& window : windows_) {
      reserved = std::max(reserved, window.reserved_peak);
      requested = std::max(requested, window.requested_peak);
      metadata = std::max(metadata, window.metadata);
      mappings = std::max(mappings, window.mappings);
    }
    std::printf(
        "{\"device\": \"model driver\", \"operations\": %llu, \"threads\": %u, \"streams\": %u, \"event_lag_ticks\": "
        "%llu, "
        "\"seconds\": %.1f, \"allocations\": %llu, \"windows\": %d, \"validated\": %zu, \"peak_requested_bytes\": "
        "%lld, "
        "\"peak_reserved_bytes\": %lld, \"overhead\": %.4f, \"peak_metadata_bytes\": %llu, \"peak_mappings\": %llu, "
        "\"driver_calls\": %llu, "
        "\"sound\": %s}\n",
        static_cast<unsigned long long>(of_each_ * kThreads), kThreads, kThreads * kStreamsOfEach,
        static_cast<unsigned long long>(kLag), total_seconds_, static_cast<unsigned long long>(stats.allocations),
        kWindows, windows_.size(), static_cast<long long>(requested), static_cast<long long>(reserved),
        static_cast<double>(reserved) / static_cast<double>(requested), static_cast<unsigned long long>(metadata),
        static_cast<unsigned long long>(mappings), static_cast<unsigned long long>(driver_calls_),
        sound ? "true" : "false");
  }

 private:
  struct Inbox {
    std::mutex mutex;
    std::vector<Address> blocks;
  };

  static ModelOptions lagging() {
    ModelOptions options;
    options.event_lag = kLag;
    return options;
  }

  // What a thread has on one of its streams, and what it will ask for next there.
  struct Held {
    std::vector<std::pair<Address, Bytes>> blocks;
    Bytes bytes = 0;
    Bytes next = 0;

    Address take(unsigned which) {
      std::swap(blocks[which % blocks.size()], blocks.back());
      const auto [address, size] = blocks.back();
      blocks.pop_back();
      bytes -= size;
      return address;
    }
  };

  template <typename Pause>
  void live(unsigned thread, Pause& pause) {
    std::mt19937 random(thread + 1);
    Held held[kStreamsOfEach];
    for (int window = 0; window < kWindows; ++window) {
      for (std::uint64_t i = of_each_ * static_cast<unsigned>(window) / kWindows,
                         end = of_each_ * (static_cast<unsigned>(window) + 1) / kWindows;
           i < end; ++i)
        operate(thread, random, held);
      pause.arrive_and_wait();
    }
    for (Held& each : held)
      while (!each.blocks.empty()) allocator_.free(each.take(0));
  }

  // One call of the allocator, mostly. The load stays just under kLiveOfEach.
  void operate(unsigned thread, std::mt19937& random, Held (&held)[kStreamsOfEach]) {
    const unsigned what = random();
    const unsigned index = what / 1024 % kStreamsOfEach;
    Held& own = held[index];
    if (what % 64 == 0) model_.advance(1);
    if (what % 256 == 1 && !own.blocks.empty()) {  // another thread frees it
      Inbox& inbox = inboxes_[(thread + 1) % kThreads];
      std::lock_guard guard(inbox.mutex);
      if (inbox.blocks.size() < kMostWaiting)  // or that thread stands still
        inbox.blocks.push_back(own.take(random()));
      else
        allocator_.free(own.take(random()));
    } else if (what % 256 == 2 && !own.blocks.empty()) {
      allocator_.record_stream(own.blocks[random() % own.blocks.size()].first, {0, kAside});
    } else if (what % 256 == 3) {
      Inbox& inbox = inboxes_[thread];
      std::lock_guard guard(inbox.mutex);
      for (const Address address : inbox.blocks) allocator_.free(address);
      inbox.blocks.clear();
    } else if (own.bytes + own.next > kLiveOfEach) {
      allocator_.free(own.take(random()));
    } else {
      if (own.next != 0) {
        own.blocks.emplace_back(allocator_.allocate(own.next, 0, stream_of(thread * kStreamsOfEach + index)), own.next);
        own.bytes += own.next;
      }
      own.next = size(random);
    }
  }

  static Bytes size(std::mt19937& random) {
    const unsigned what = random() % 1000;
    if (what < 700) return 1 + random() % (8 * kKiB);
    if (what < 950) return 1 + random() % (256 * kKiB);
    if (what < 999) return 1 + random() % (4 * kPageBytes);
    return 1 + random() % (32 * kPageBytes);
  }

  // All threads stand still.
  void end_window() noexcept {
    allocator_.validate();
    const DeviceStats stats = allocator_.stats(0);
    const auto now = std::chrono::steady_clock::now();
    Window window;
    window.seconds = std::chrono::duration<double>(now - window_began_).count();
    window.requested_peak = stats.requested.peak;
    window.reserved_peak = stats.reserved.peak;
    window.metadata = stats.metadata_bytes;
    window.live_blocks = stats.live_blocks;
    for (const HeapStats& heap : stats.heaps) window.mappings += heap.mappings;
    windows_.push_back(window);
    total_seconds_ += window.seconds;
    driver_calls_ = 0;
    for (const auto& [name, count] : stats.driver_calls) driver_calls_ += count;
    std::printf("window %2zu: %6.1f s, peak requested %lld, reserved %lld, metadata %llu, mappings %llu, blocks %llu\n",
                windows_.size(), window.seconds, static_cast<long long>(window.requested_peak),
                static_cast<long long>(window.reserved_peak), static_cast<unsigned long long>(window.metadata),
                static_cast<unsigned long long>(window.mappings), static_cast<unsigned long long>(window.live_blocks));
    std::fflush(stdout);
    allocator_.reset_peak_stats(0);
    window_began_ = std::chrono::steady_clock::now();
  }

  const std::uint64_t of_each_;
  ModelDriver model_;
  Allocator allocator_;
  Inbox inboxes_[kThreads];
  std::vector<Window> windows_;
  std::chrono::steady_clock::time_point window_began_ = std::chrono::steady_clock::now();
  double total_seconds_ = 0;
  std::uint64_t driver_calls_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
  char* end = nullptr;
  const std::uint64_t operations = count > 1 ? std::strtoull(arguments[1], &end, 10) : 1'000'000;
  if (count > 2 || (end != nullptr && *end != '\0') || operations < kThreads * kWindows) {
    std::fprintf(stderr, "usage: %s [operations]\n", arguments[0]);
    return 2;
  }
  Soak soak(operations);
  soak.run();
  const bool steady = soak.steady();
  const bool empty = soak.empty();
  soak.print_result(steady && empty);
  return steady && empty ? 0 : 1;
}
