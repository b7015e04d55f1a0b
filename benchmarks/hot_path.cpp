// The loops of hot_path.py: allocate and free through the interface that torch itself calls. Every function returns
// nanoseconds a pair of allocate and free, without the filling before and the emptying after.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <ctime>
#include <random>
#include <thread>
#include <vector>

#define EXPORT __attribute__((visibility("default")))

namespace {

// Time of this thread on a processor: others that run meanwhile do not count.
double now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

c10::cuda::CUDACachingAllocator::CUDAAllocator* allocator() { return c10::cuda::CUDACachingAllocator::get(); }

double same_size_here(std::int64_t bytes, std::int64_t pairs) {
  c10::Allocator* own = allocator();
  const double start = now();
  for (std::int64_t i = 0; i < pairs; ++i) own->allocate(static_cast<std::size_t>(bytes));
  return (now() - start) / static_cast<double>(pairs);
}

}  // namespace

extern "C" {

// The same size again and again, as a DataPtr.
EXPORT double same_size(std::int64_t bytes, std::int64_t pairs) { return same_size_here(bytes, pairs); }

// The same on `threads` threads at once, each on a stream of its own. The mean of the threads.
EXPORT double same_size_on_threads(std::int64_t threads, std::int64_t bytes, std::int64_t pairs) {
  std::vector<double> times(static_cast<std::size_t>(threads));
  std::atomic<std::int64_t> ready{0};
  std::vector<std::thread> running;
  for (double& time : times)
    running.emplace_back([&ready, &time, threads, bytes, pairs] {
      c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool());
      same_size_here(bytes, pairs / 10);
      ++ready;
      while (ready < threads) std::this_thread::yield();
      time = same_size_here(bytes, pairs);
    });
  for (std::thread& thread : running) thread.join();
  double sum = 0;
  for (const double time : times) sum += time;
  return sum / static_cast<double>(threads);
}

// `live` blocks with sizes from `bytes`. A block goes and one of another size comes, `pairs` times; the places come in
// a fixed mixed order, or in that of their age. What is measured begins after two passes over the places.
EXPORT double mixed(const std::int64_t* bytes, std::int64_t sizes, std::int64_t live, std::int64_t pairs,
                    std::int64_t oldest_first) {
  auto* own = allocator();
  std::mt19937_64 random(1);
  std::vector<std::uint32_t> order(static_cast<std::size_t>(live));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
  if (oldest_first == 0) std::shuffle(order.begin(), order.end(), random);
  std::vector<void*> blocks(order.size());
  std::int64_t turn = 0;
  const auto size = [&] { return static_cast<std::size_t>(bytes[turn++ % sizes]); };
  for (void*& block : blocks) block = own->raw_alloc(size());
  const auto replace = [&](std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      void*& block = blocks[order[static_cast<std::size_t>(turn % live)]];
      own->raw_delete(block);
      block = own->raw_alloc(size());
    }
  };
  replace(2 * live);
  const double start = now();
  replace(pairs);
  const double spent = (now() - start) / static_cast<double>(pairs);
  for (void* block : blocks) own->raw_delete(block);
  return spent;
}

// What torch.cuda.memory_stats does before Python: the figures of one device, read `times` times. Nanoseconds a read.
EXPORT double statistics(std::int64_t live, std::int64_t times) {
  auto* own = allocator();
  std::vector<void*> blocks(static_cast<std::size_t>(live));
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = own->raw_alloc(512 * (1 + i % 1000));
  const double start = now();
  for (std::int64_t i = 0; i < times; ++i) own->getDeviceStats(0);
  const double spent = (now() - start) / static_cast<double>(times);
  for (void* block : blocks) own->raw_delete(block);
  return spent;
}
}
