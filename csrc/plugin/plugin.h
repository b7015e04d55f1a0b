// The C ABI that torch.cuda.memory.CUDAPluggableAllocator loads, and the one allocator of the process behind it.
// Not here: any policy (core), any CUDA call (driver), any torch header: the few foreign types are declared below.
//
// - Every function may be called from any thread.
// - The allocator and its driver are leaked on purpose: tensors die after static destructors have run.
// - In a child of fork() whose parent had used CUDA nothing here touches the device: malloc throws, the rest is
// ignored.
// - Exceptions pass through torch's wrapper and reach Python as RuntimeError with their text. Functions that torch
// calls
//   from destructors (free, release_pool) never throw: they report the first failure on stderr and count the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "core/allocator.h"

struct CUstream_st;  // CUDA's own tag, so that std::function below is the type torch passes

namespace poolalloc {

using CudaStream = CUstream_st*;
using TorchPoolId = std::pair<unsigned long long, unsigned long long>;  // c10::MempoolId_t
using TorchStreamFilter = std::function<bool(CudaStream)>;

// The hooks of the handle that torch.cuda.memory.CUDAPluggableAllocator makes: X(setter, function).
#define POOLALLOC_TORCH_HOOKS(X)                                  \
  X(set_init_fn, poolalloc_init)                                  \
  X(set_reset_fn, poolalloc_empty_cache)                          \
  X(set_memory_fraction_fn, poolalloc_set_memory_fraction)        \
  X(set_base_alloc_fn, poolalloc_base_allocation)                 \
  X(set_record_stream_fn, poolalloc_record_stream)                \
  X(set_begin_allocate_to_pool, poolalloc_begin_allocate_to_pool) \
  X(set_end_allocate_to_pool_fn, poolalloc_end_allocate_to_pool)  \
  X(set_release_pool, poolalloc_release_pool)

// What the door has seen so far; the allocator's own statistics are Allocator::stats.
struct PluginState {
  bool configured = false;  // the options are fixed
  bool used = false;        // torch has initialised CUDA on it, or memory was asked for
  bool forked = false;      // this is a child of fork() that must not touch the device
#define X(setter, function) std::uint64_t function = 0;
  POOLALLOC_TORCH_HOOKS(X)  // calls of each hook
#undef X
  std::uint64_t failures = 0;  // calls from destructors that failed: unknown pointers, errors of the driver
  std::string last_failure;
};

// Fixes the options of the process-wide allocator, and the plan it serves requests from, if there is one. Without it
// the first use takes the defaults and POOLALLOC_CONF. The same a second time is accepted. Throws ConfigError, also if
// other options or another plan are already fixed.
POOLALLOC_API void configure_plugin(const Options& options, const Plan* plan = nullptr);
// The process-wide allocator, made if need be. Throws ConfigError (POOLALLOC_CONF), UsageError (in a child of fork()).
POOLALLOC_API Allocator& plugin_allocator();
// A stream uses the block that `pointer` lies in. Memory that is not poolalloc's is ignored, as torch's own allocator
// does.
POOLALLOC_API void record_use(void* pointer, Stream stream);
// Its callbacks, which may be added before the first use: this touches no device. Throws ConfigError.
POOLALLOC_API OomCallbacks& plugin_oom_callbacks();
POOLALLOC_API PluginState plugin_state();
// For what fails where nothing can be thrown: the first goes to stderr, all are counted.
POOLALLOC_API void report_failure(const char* function, const char* what) noexcept;

}  // namespace poolalloc

extern "C" {
// Fixes the options from "key:value,key:value" on top of the defaults. Null if that went well, else what is wrong; the
// text lives until this thread's next call.
POOLALLOC_API const char* poolalloc_configure(const char* conf);

// Null for 0 bytes. Throws OutOfMemory, DriverError, UsageError, ConfigError.
POOLALLOC_API void* poolalloc_malloc(std::size_t bytes, int device, poolalloc::CudaStream stream);
POOLALLOC_API void poolalloc_free(void* pointer, std::size_t bytes, int device, poolalloc::CudaStream stream);

POOLALLOC_API void poolalloc_init(int device_count);
POOLALLOC_API void poolalloc_empty_cache();
POOLALLOC_API void poolalloc_set_memory_fraction(double fraction, int device);
// Throws UsageError if `pointer` lies in no live block.
POOLALLOC_API void* poolalloc_base_allocation(void* pointer, std::size_t* bytes);
// Ignores memory that is not poolalloc's, as torch's own allocator does. The driver says whose stream it is.
POOLALLOC_API void poolalloc_record_stream(void* pointer, poolalloc::CudaStream stream);
// Torch's hooks do not tell a capture from mere routing, so one is expected until a request shows that there is none.
POOLALLOC_API void poolalloc_begin_allocate_to_pool(int device, poolalloc::TorchPoolId pool,
                                                    poolalloc::TorchStreamFilter filter);
POOLALLOC_API void poolalloc_end_allocate_to_pool(int device, poolalloc::TorchPoolId pool);
POOLALLOC_API void poolalloc_release_pool(int device, poolalloc::TorchPoolId pool);
}
