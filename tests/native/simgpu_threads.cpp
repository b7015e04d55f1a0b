// Threads on the simulated CUDA runtime at once: memory of every kind, streams, events, captures. For ThreadSanitizer
// and AddressSanitizer; the rules themselves are tested from Python (tests/sim/test_runtime.py).
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "simgpu/cuda_abi.h"
#include "simgpu/simgpu.h"

namespace abi = poolalloc::simgpu::abi;

extern "C" {
int cudaMalloc(void** pointer, std::size_t size);
int cudaFree(void* pointer);
int cudaMallocAsync(void** pointer, std::size_t size, void* stream);
int cudaFreeAsync(void* pointer, void* stream);
int cudaMemcpy(void* to, const void* from, std::size_t size, int kind);
int cudaStreamCreateWithFlags(void** stream, unsigned flags);
int cudaStreamDestroy(void* stream);
int cudaStreamSynchronize(void* stream);
int cudaStreamWaitEvent(void* stream, void* event, unsigned flags);
int cudaStreamBeginCapture(void* stream, int mode);
int cudaStreamEndCapture(void* stream, void** graph);
int cudaGraphInstantiate(void** exec, void* graph, unsigned long long flags);
int cudaGraphLaunch(void* exec, void* stream);
int cudaGraphExecDestroy(void* exec);
int cudaGraphDestroy(void* graph);
int cudaEventCreateWithFlags(void** event, unsigned flags);
int cudaEventDestroy(void* event);
int cudaEventRecord(void* event, void* stream);
int cudaEventQuery(void* event);
int cudaLaunchKernel(const void* function, abi::Dim3 grid, abi::Dim3 block, void** arguments, std::size_t shared,
                     void* stream);
int cudaMemGetInfo(std::size_t* free, std::size_t* total);
int cuMemAddressReserve(std::uint64_t* address, std::size_t size, std::size_t alignment, std::uint64_t hint,
                        unsigned long long flags);
int cuMemAddressFree(std::uint64_t address, std::size_t size);
int cuMemCreate(std::uint64_t* handle, std::size_t size, const abi::AllocationProp* properties,
                unsigned long long flags);
int cuMemRelease(std::uint64_t handle);
int cuMemMap(std::uint64_t address, std::size_t size, std::size_t offset, std::uint64_t handle,
             unsigned long long flags);
int cuMemUnmap(std::uint64_t address, std::size_t size);
int cuMemSetAccess(std::uint64_t address, std::size_t size, const abi::MemAccessDesc* descriptors, std::size_t count);
}

namespace {

constexpr std::size_t kPage = 2 << 20;
constexpr int kRounds = 200;
constexpr int kThreads = 6;

std::atomic<int> failures{0};

void expect(bool truth, const char* what) {
  if (truth) return;
  ++failures;
  std::fprintf(stderr, "not true: %s\n", what);
}
#define EXPECT(truth) expect((truth), #truth)
#define OK(call) expect((call) == 0, #call)

void launch(void* stream) { OK(cudaLaunchKernel(nullptr, {1, 1, 1}, {32, 1, 1}, nullptr, 0, stream)); }

void map_and_unmap(std::uint64_t base, unsigned char mark) {
  const abi::AllocationProp properties{abi::kAllocationPinned, 0, {abi::kLocationDevice, 0}, nullptr, {}};
  const abi::MemAccessDesc access{{abi::kLocationDevice, 0}, abi::kAccessReadWrite};
  std::uint64_t handle = 0;
  OK(cuMemCreate(&handle, 2 * kPage, &properties, 0));
  OK(cuMemMap(base, 2 * kPage, 0, handle, 0));
  OK(cuMemSetAccess(base, 2 * kPage, &access, 1));
  OK(cuMemRelease(handle));
  OK(cudaMemcpy(reinterpret_cast<void*>(base + kPage), &mark, 1, abi::kHostToDevice));
  OK(cuMemUnmap(base, 2 * kPage));
}

void capture(void* stream) {
  OK(cudaStreamBeginCapture(stream, abi::kCaptureThreadLocal));
  launch(stream);
  void* block = nullptr;
  OK(cudaMallocAsync(&block, 1000, stream));
  OK(cudaFreeAsync(block, stream));
  void* graph = nullptr;
  void* exec = nullptr;
  OK(cudaStreamEndCapture(stream, &graph));
  OK(cudaGraphInstantiate(&exec, graph, 0));
  OK(cudaGraphDestroy(graph));
  OK(cudaGraphLaunch(exec, stream));
  OK(cudaGraphExecDestroy(exec));
}

void work(unsigned seed) {
  std::mt19937 chance(seed);
  void* stream = nullptr;
  void* event = nullptr;
  std::uint64_t base = 0;
  OK(cudaStreamCreateWithFlags(&stream, abi::kStreamNonBlocking));
  OK(cudaEventCreateWithFlags(&event, abi::kEventDisableTiming));
  OK(cuMemAddressReserve(&base, 8 * kPage, 0, 0, 0));
  std::vector<void*> live, pooled;
  for (int round = 0; round < kRounds; ++round) {
    void* block = nullptr;
    OK(cudaMalloc(&block, 1 + chance() % (3 * kPage)));
    live.push_back(block);
    OK(cudaMallocAsync(&block, 1 + chance() % 100000, stream));
    pooled.push_back(block);
    launch(stream);
    OK(cudaEventRecord(event, stream));
    OK(cudaStreamWaitEvent(nullptr, event, 0));
    const int state = cudaEventQuery(event);
    EXPECT(state == 0 || state == 600);
    map_and_unmap(base, static_cast<unsigned char>(seed));
    if (round % 10 == 0) capture(stream);
    if (live.size() > 4) {
      OK(cudaFree(live.back()));
      live.pop_back();
      OK(cudaFreeAsync(pooled.back(), stream));
      pooled.pop_back();
    }
    std::size_t free_bytes = 0, total_bytes = 0;
    OK(cudaMemGetInfo(&free_bytes, &total_bytes));
    EXPECT(free_bytes <= total_bytes);
  }
  for (void* block : live) OK(cudaFree(block));
  for (void* block : pooled) OK(cudaFreeAsync(block, stream));
  OK(cudaStreamSynchronize(stream));
  OK(cuMemAddressFree(base, 8 * kPage));
  OK(cudaEventDestroy(event));
  OK(cudaStreamDestroy(stream));
}

}  // namespace

int main() {
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < kThreads; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  OK(cudaStreamSynchronize(nullptr));
  EXPECT(simgpu_used_bytes(0) == 0);
  EXPECT(simgpu_violations() == 0);
  return failures == 0 ? 0 : 1;
}
