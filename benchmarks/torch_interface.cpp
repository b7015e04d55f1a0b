// The loops of torch_interface.py: allocate and free through the interface that torch itself calls. Nanoseconds a pair.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>
#include <ctime>
#include <vector>

namespace {

// Time of this thread on a processor: others that run meanwhile do not count.
double now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

}  // namespace

extern "C" {

// The same size again and again, as a DataPtr.
__attribute__((visibility("default"))) double same_size(std::int64_t bytes, std::int64_t pairs) {
  c10::Allocator* allocator = c10::cuda::CUDACachingAllocator::get();
  const double start = now();
  for (std::int64_t i = 0; i < pairs; ++i) allocator->allocate(static_cast<std::size_t>(bytes));
  return (now() - start) / static_cast<double>(pairs);
}

// Sizes in `bytes`, `live` blocks alive at any time; the oldest goes.
__attribute__((visibility("default"))) double mixed(const std::int64_t* bytes, std::int64_t sizes, std::int64_t live,
                                                    std::int64_t pairs) {
  auto* allocator = c10::cuda::CUDACachingAllocator::get();
  std::vector<void*> ring(static_cast<std::size_t>(live), nullptr);
  for (std::int64_t i = 0; i < live; ++i) ring[i] = allocator->raw_alloc(bytes[i % sizes]);
  const double start = now();
  for (std::int64_t i = 0; i < pairs; ++i) {
    void*& place = ring[i % live];
    allocator->raw_delete(place);
    place = allocator->raw_alloc(bytes[(i * 7919 + live) % sizes]);
  }
  const double spent = (now() - start) / static_cast<double>(pairs);
  for (void* memory : ring) allocator->raw_delete(memory);
  return spent;
}
}
