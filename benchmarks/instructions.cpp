// The engine alone, on the model device: allocate and free in patterns whose work is the same in every run, so that
// `valgrind --tool=callgrind` counts their instructions exactly. tools/check_instructions.py runs it and compares.
//
//   native_instructions             every pattern once, for counting
//   native_instructions ROUNDS      nanoseconds a pair of each pattern, medians; to look at, not to compare
//
// Only calls of the two functions of Counted are counted: the filling and the first rounds of a pattern call the
// allocator directly.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <vector>

#include "core/allocator.h"
#include "driver/model_driver.h"

using namespace poolalloc;

namespace {

constexpr Bytes kKiB = Bytes{1} << 10, kMiB = Bytes{1} << 20, kGiB = Bytes{1} << 30;

// The patterns; their names stand in the profile.
struct one_size;
struct one_large_size;
struct few_sizes;
struct exact_sizes;
struct small_sizes;
struct many_live;
struct large_sizes;
struct all_sizes;
struct two_streams;

template <typename Pattern>
struct Counted {
  [[gnu::noinline]] static Address allocate(Allocator& allocator, Bytes bytes, StreamId stream) {
    return allocator.allocate(bytes, 0, stream);
  }
  [[gnu::noinline]] static void free(Allocator& allocator, Address address) { allocator.free(address); }
};

double now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

// Spread evenly over the powers of two.
std::vector<Bytes> sizes_between(Bytes low, Bytes high, std::size_t count) {
  std::mt19937_64 random(1);
  std::vector<Bytes> sizes;
  int doublings = 0;
  while (low << doublings < high) ++doublings;
  for (std::size_t i = 0; i < count; ++i) {
    const Bytes base = low << random() % static_cast<unsigned>(doublings);
    sizes.push_back(base + random() % base + 1);
  }
  return sizes;
}

class Program {
 public:
  explicit Program(int rounds) : rounds_(rounds) {}

  // Fills `live` places, then replaces them in a mixed order: a block goes, one of another size comes.
  template <typename Pattern>
  void run(const char* name, const std::vector<Bytes>& sizes, std::size_t live, std::size_t pairs, int streams = 1,
           const Options& options = {}) {
    ModelOptions device;
    device.memory_bytes = 192 * kGiB;
    ModelDriver driver(device);
    Allocator allocator(driver, options);
    std::mt19937_64 random(2);
    std::vector<std::size_t> order(std::max<std::size_t>(live, 1));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    std::vector<Address> blocks(order.size());
    std::size_t turn = 0;
    const auto size = [&] { return sizes[turn % sizes.size()]; };
    const auto stream = [&] { return StreamId{16} * (turn % static_cast<unsigned>(streams)); };
    for (Address& block : blocks) {
      block = allocator.allocate(size(), 0, stream());
      ++turn;
    }
    const auto replace = [&](auto allocate, auto free, std::size_t count) {
      for (std::size_t i = 0; i < count; ++i, ++turn) {
        Address& block = blocks[order[turn % order.size()]];
        free(allocator, block);
        block = allocate(allocator, size(), stream());
      }
    };
    const auto warm_allocate = [](Allocator& to, Bytes bytes, StreamId on) { return to.allocate(bytes, 0, on); };
    const auto warm_free = [](Allocator& to, Address address) { to.free(address); };
    replace(warm_allocate, warm_free, std::max<std::size_t>(2 * live, 4096));
    const auto calls = driver_calls(allocator);
    if (rounds_ == 0) {
      replace(Counted<Pattern>::allocate, Counted<Pattern>::free, pairs);
      std::printf("%s %zu %llu\n", name, pairs, driver_calls(allocator) - calls);
    } else {
      std::vector<double> times;
      for (int round = 0; round < rounds_; ++round) {
        const double start = now();
        replace(warm_allocate, warm_free, pairs * 20);
        times.push_back((now() - start) / static_cast<double>(pairs * 20));
      }
      std::nth_element(times.begin(), times.begin() + rounds_ / 2, times.end());
      std::printf("%-16s %8.1f ns a pair, %.3f driver calls a pair\n", name,
                  times[static_cast<std::size_t>(rounds_) / 2],
                  static_cast<double>(driver_calls(allocator) - calls) /
                      static_cast<double>(pairs * 20 * static_cast<std::size_t>(rounds_)));
    }
    for (const Address block : blocks) allocator.free(block);
  }

 private:
  static unsigned long long driver_calls(const Allocator& allocator) {
    unsigned long long calls = 0;
    for (const auto& [name, count] : allocator.stats(0).driver_calls) calls += count;
    return calls;
  }

  const int rounds_;
};

}  // namespace

int main(int count, char** arguments) {
  Program program(count > 1 ? std::atoi(arguments[1]) : 0);
#define RUN(pattern, ...) program.run<pattern>(#pattern, __VA_ARGS__)
  RUN(one_size, {kKiB}, 1, 20000);
  RUN(one_large_size, {8 * kMiB}, 1, 20000);
  RUN(small_sizes, sizes_between(512, kMiB / 4, 4093), 4096, 20000);
  RUN(many_live, sizes_between(512, 4 * kKiB, 4093), 100000, 20000);
  RUN(large_sizes, sizes_between(kMiB, 64 * kMiB, 509), 512, 20000);
  const std::vector<Bytes> few = sizes_between(kMiB, 64 * kMiB, 37);
  Options exact;
  for (const Bytes size : few) exact.exact_bins.push_back({size, 8, 8});
  RUN(few_sizes, few, 512, 20000);
  RUN(exact_sizes, few, 512, 20000, 1, exact);
  RUN(all_sizes, sizes_between(512, 64 * kMiB, 4093), 4096, 20000);
  RUN(two_streams, sizes_between(512, kMiB / 4, 4093), 4096, 20000, 2);
#undef RUN
}
