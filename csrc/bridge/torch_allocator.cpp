// Memory in and out, and what torch is told about it: profiler, GPU trace, out of memory.
#include "bridge/torch_allocator.h"

#include <c10/core/impl/GPUTrace.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include "bridge/settings.h"
#include "core/device/out_of_memory.h"
#include "plugin/plugin.h"

namespace poolalloc::bridge {
namespace {

// Whether a profiler is at work on this thread at all; whether it wants to know of memory is asked afterwards. (This is
// the first half of c10::memoryProfilingEnabled, which every call would pay for.)
inline bool profiled() {
  return c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE) != nullptr && c10::memoryProfilingEnabled();
}

// The stream of a device that is current on this thread. Only the default stream has the id 0, and it is null.
inline cudaStream_t current_stream(DeviceIndex device) {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(device);
  return stream.id() == 0 ? nullptr : stream.stream();
}

// What torch's memory profiler is told: the change in rounded bytes, and the sums after it.
[[gnu::noinline]] void tell_profiler(void* memory, std::int64_t change, DeviceIndex device) {
  const DeviceStats stats = plugin_allocator().stats(device);
  c10::reportMemoryUsageToProfiler(memory, change, static_cast<std::size_t>(stats.live.current),
                                   static_cast<std::size_t>(stats.reserved.current), c10::Device(c10::kCUDA, device));
}

[[gnu::noinline]] void tell_profiler_of_new(void* memory, DeviceIndex device) {
  Bytes bytes = 0;
  plugin_allocator().base_allocation(address_of(memory), &bytes);
  tell_profiler(memory, static_cast<std::int64_t>(bytes), device);
}

// Frees, and tells the profiler: it must know device and size, which are gone afterwards.
template <typename Free>
[[gnu::noinline]] void free_under_profiler(void* memory, Free&& free) {
  const auto block = plugin_allocator().block(address_of(memory));
  free();
  if (block) tell_profiler(memory, -static_cast<std::int64_t>(block->rounded), static_cast<DeviceIndex>(block->device));
}

// Those who hold CUDA memory that they could do without (torch's IPC buffers, for one). True if one gave some back.
bool run_free_memory_callbacks() {
  bool freed = false;
  for (const std::string& name : c10::FreeCudaMemoryCallbacksRegistry()->Keys())
    freed |= c10::FreeCudaMemoryCallbacksRegistry()->Create(name)->Execute();
  return freed;
}

}  // namespace

TorchAllocator::TorchAllocator()
    : CUDAPluggableAllocator(&poolalloc_malloc, &poolalloc_free), caching_(!without_caching()) {}

std::string TorchAllocator::name() {
  const std::string& parsed = backend_being_parsed();
  return parsed.empty() ? CUDAPluggableAllocator::name() : parsed;
}

void TorchAllocator::enable(bool value) { caching_ = value && !without_caching(); }

// --- the hot path ------------------------------------------------------------------------------------------------

inline void* TorchAllocator::get(std::size_t bytes, DeviceIndex device, cudaStream_t stream) {
  if (bytes == 0) return nullptr;
  if (History::on()) [[unlikely]]
    return get_recorded(bytes, device, stream);
  return get_unrecorded(bytes, device, stream);
}

void* TorchAllocator::get_recorded(std::size_t bytes, DeviceIndex device, cudaStream_t stream) {
  const History::Cause cause(RecordContext::STATE);
  void* memory = get_unrecorded(bytes, device, stream);
  History::instance().allocated(memory);
  return memory;
}

inline void* TorchAllocator::get_unrecorded(std::size_t bytes, DeviceIndex device, cudaStream_t stream) {
  void* memory = nullptr;
  try {
    memory = poolalloc_malloc(bytes, device, stream);
  } catch (const OutOfMemory& error) {
    raise_out_of_memory(bytes, device, stream, error.what());
  } catch (const UsageError& error) {  // a region that is asleep
    TORCH_CHECK(false, "poolalloc: ", error.what());
  } catch (const DriverError&) {
    static_cast<void>(getMemoryInfo(device));  // throws torch's own error if the device is lost
    throw;
  }
  if (const c10::impl::PyInterpreter* tracer = c10::impl::GPUTrace::get_trace()) [[unlikely]]
    (*tracer)->trace_gpu_memory_allocation(c10::kCUDA, reinterpret_cast<std::uintptr_t>(memory));
  if (profiled()) [[unlikely]]
    tell_profiler_of_new(memory, device);
  return memory;
}

// Where there is one device there is no other to be current.
inline DeviceIndex TorchAllocator::current_device() const {
  if (devices_ == 1) return 0;
  DeviceIndex device = -1;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  return device;
}

c10::DataPtr TorchAllocator::allocate(std::size_t bytes) {
  const DeviceIndex device = current_device();
  if (!caching_.load(std::memory_order_relaxed)) [[unlikely]]
    return allocate_uncached(bytes, device);
  void* memory = get(bytes, device, current_stream(device));
  return {memory, memory, &release, c10::Device(c10::kCUDA, device)};
}

void* TorchAllocator::raw_alloc(std::size_t bytes) {
  const DeviceIndex device = current_device();
  if (!caching_.load(std::memory_order_relaxed)) [[unlikely]]
    return get_uncached(bytes, device);
  return get(bytes, device, current_stream(device));
}

void* TorchAllocator::raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) {
  const DeviceIndex device = current_device();
  if (!caching_.load(std::memory_order_relaxed)) [[unlikely]]
    return get_uncached(bytes, device);
  return get(bytes, device, stream);
}

namespace {

template <typename Free>
inline void free_unrecorded(void* memory, Free free) {
  if (const c10::impl::PyInterpreter* tracer = c10::impl::GPUTrace::get_trace()) [[unlikely]]
    (*tracer)->trace_gpu_memory_deallocation(c10::kCUDA, reinterpret_cast<std::uintptr_t>(memory));
  if (profiled()) [[unlikely]]
    return free_under_profiler(memory, [=] { free(memory); });
  free(memory);
}

template <typename Free>
[[gnu::noinline]] void free_recorded(void* memory, Free free) {
  const History::Cause cause(RecordContext::ALL);
  History::instance().freeing(memory);
  free_unrecorded(memory, free);
}

template <typename Free>
inline void free_block(void* memory, Free free) {
  if (memory == nullptr) return;
  if (History::on()) [[unlikely]]
    return free_recorded(memory, free);
  free_unrecorded(memory, free);
}

}  // namespace

// Called from destructors: never throws (poolalloc_free reports failures).
void TorchAllocator::release(void* memory) {
  free_block(memory, [](void* block) { poolalloc_free(block, 0, 0, nullptr); });
}

void TorchAllocator::raw_delete(void* memory) {
  if (uncached_.load(std::memory_order_relaxed) && !plugin_allocator().owns(address_of(memory))) [[unlikely]]
    return release_uncached(memory);
  free_block(memory, [](void* block) { plugin_allocator().free(address_of(block)); });
}

// --- torch.cuda.caching_allocator_enable(False), PYTORCH_NO_CUDA_MEMORY_CACHING -------------------------------------

// Straight from CUDA and back, as with torch's own allocator: in no figure, no pool and under no limit.
void* TorchAllocator::get_uncached(std::size_t bytes, DeviceIndex device) {
  if (bytes == 0) return nullptr;
  uncached_ = true;
  void* memory = nullptr;
  cudaError_t result = cudaMalloc(&memory, bytes);
  if (result == cudaErrorMemoryAllocation) {  // what lies idle here may be what is missing there
    static_cast<void>(cudaGetLastError());
    plugin_allocator().trim(0, device, true);
    result = cudaMalloc(&memory, bytes);
  }
  if (result == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    const auto [free_bytes, total_bytes] = getMemoryInfo(device);
    raise_out_of_memory(bytes, device, current_stream(device),
                        torchs_sentences(bytes, device, free_bytes, total_bytes) + " poolalloc: cudaMalloc(" +
                            std::to_string(bytes) + " bytes) on device " + std::to_string(device) +
                            ": the caching allocator is switched off (torch.cuda.caching_allocator_enable or "
                            "PYTORCH_NO_CUDA_MEMORY_CACHING)");
  }
  C10_CUDA_CHECK(result);
  if (const c10::impl::PyInterpreter* tracer = c10::impl::GPUTrace::get_trace())
    (*tracer)->trace_gpu_memory_allocation(c10::kCUDA, reinterpret_cast<std::uintptr_t>(memory));
  return memory;
}

c10::DataPtr TorchAllocator::allocate_uncached(std::size_t bytes, DeviceIndex device) {
  void* memory = get_uncached(bytes, device);
  return {memory, memory, &release_uncached, c10::Device(c10::kCUDA, device)};
}

// Waits for the device, as cudaFree does: whatever stream used the memory is done with it.
void TorchAllocator::release_uncached(void* memory) {
  if (memory == nullptr || plugin_state().forked) return;
  if (plugin_allocator().owns(address_of(memory))) return release(memory);  // torch asks raw_deleter for any memory
  if (const c10::impl::PyInterpreter* tracer = c10::impl::GPUTrace::get_trace())
    (*tracer)->trace_gpu_memory_deallocation(c10::kCUDA, reinterpret_cast<std::uintptr_t>(memory));
  if (cudaFree(memory) != cudaSuccess) static_cast<void>(cudaGetLastError());  // the end of the process
}

// --- out of memory -----------------------------------------------------------------------------------------------

void TorchAllocator::raise_out_of_memory(std::size_t bytes, DeviceIndex device, cudaStream_t stream,
                                         const std::string& text) {
  const DeviceStats stats = plugin_allocator().stats(device);
  c10::reportOutOfMemoryToProfiler(static_cast<std::int64_t>(bytes), static_cast<std::size_t>(stats.live.current),
                                   static_cast<std::size_t>(stats.reserved.current), c10::Device(c10::kCUDA, device));
  const auto [free_bytes, total_bytes] = getMemoryInfo(device);
  if (History::on()) History::instance().out_of_memory(device, id_of(stream), bytes, free_bytes);
  std::vector<OutOfMemoryObserver> observers;
  {
    const std::lock_guard guard(mutex_);
    observers = out_of_memory_observers_;
  }
  for (const OutOfMemoryObserver& observer : observers)
    observer(device, bytes, std::min<std::size_t>(total_bytes, stats.limit_bytes), free_bytes);
  TORCH_CHECK_WITH(OutOfMemoryError, false, text);
}

void TorchAllocator::attachOutOfMemoryObserver(OutOfMemoryObserver observer) {
  const std::lock_guard guard(mutex_);
  out_of_memory_observers_.push_back(std::move(observer));
}

// --- the rest of a block's life ----------------------------------------------------------------------------------

// Memory of others is theirs to look after, as it is with torch's own allocator.
void TorchAllocator::recordStream(const c10::DataPtr& memory, c10::cuda::CUDAStream stream) {
  if (memory.get() != nullptr && memory.get_deleter() == &release)
    record_use(memory.get(), {stream.device_index(), id_of(stream.stream())});
}

void* TorchAllocator::getBaseAllocation(void* memory, std::size_t* bytes) {
  return poolalloc_base_allocation(memory, bytes);
}

void TorchAllocator::init(int device_count) {
  poolalloc_init(device_count);
  if (device_count > 0 && !initialized_)
    plugin_allocator().oom_callbacks().add([](poolalloc::DeviceIndex, Bytes) { return run_free_memory_callbacks(); });
  devices_ = device_count;
  initialized_ = true;
  if (device_count > 0) apply_settings_of_environment();
}

void TorchAllocator::emptyCache(MempoolId_t pool) {
  const History::Cause cause(RecordContext::ALL);
  if (pool == MempoolId_t{0, 0})
    poolalloc_empty_cache();
  else
    plugin_allocator().empty_cache(id_of(pool));
}

double TorchAllocator::getMemoryFraction(DeviceIndex device) { return plugin_allocator().memory_fraction(device); }

void TorchAllocator::setMemoryFraction(double fraction, DeviceIndex device) {
  poolalloc_set_memory_fraction(fraction, device);
}

}  // namespace poolalloc::bridge
