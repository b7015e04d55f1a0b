// The handles of NVIDIA's libraries, the streams they work on, and the launch that stands for their work.
// Not for descriptors, which nothing works on.
#include <map>
#include <mutex>

#include "stub.h"

extern "C" {
struct SimgpuDim3 {
  unsigned x, y, z;
};
int cudaLaunchKernel(const void* function, SimgpuDim3 grid, SimgpuDim3 block, void** arguments,
                     std::size_t shared_bytes, void* stream);
}

namespace poolalloc::simgpu_stubs {

int launch(void* stream) {
  constexpr int kExecutionFailed = 13;
  constexpr SimgpuDim3 kOne{1, 1, 1};
  static const char function = 0;
  return cudaLaunchKernel(&function, kOne, kOne, nullptr, 0, stream) == 0 ? 0 : kExecutionFailed;
}

#define CREATE(function)                             \
  SIMGPU_STUB int function(LibraryHandle** handle) { \
    *handle = new LibraryHandle;                     \
    return 0;                                        \
  }
#define DESTROY(function)                           \
  SIMGPU_STUB int function(LibraryHandle* handle) { \
    delete handle;                                  \
    return 0;                                       \
  }
#define SET_STREAM(function)                                      \
  SIMGPU_STUB int function(LibraryHandle* handle, void* stream) { \
    handle->stream = stream;                                      \
    return 0;                                                     \
  }
CREATE(cublasCreate_v2)
CREATE(cudnnCreate)
CREATE(cusolverDnCreate)
CREATE(cusparseCreate)
DESTROY(cublasDestroy_v2)
DESTROY(cusolverDnDestroy)
DESTROY(cusparseDestroy)
SET_STREAM(cublasSetStream_v2)
SET_STREAM(cudnnSetStream)
SET_STREAM(cusolverDnSetStream)
SET_STREAM(cusparseSetStream)

SIMGPU_STUB int cudnnGetStream(const LibraryHandle* handle, void** stream) {
  *stream = handle->stream;
  return 0;
}

// --- cuBLAS: modes that can be asked back ---
SIMGPU_STUB int cublasSetPointerMode_v2(LibraryHandle* handle, int mode) {
  handle->pointer_mode = mode;
  return 0;
}
SIMGPU_STUB int cublasGetPointerMode_v2(const LibraryHandle* handle, int* mode) {
  *mode = handle->pointer_mode;
  return 0;
}
SIMGPU_STUB int cublasSetMathMode(LibraryHandle* handle, int mode) {
  handle->math_mode = mode;
  return 0;
}
SIMGPU_STUB int cublasGetMathMode(const LibraryHandle* handle, int* mode) {
  *mode = handle->math_mode;
  return 0;
}

// --- cuFFT: a plan is a number ---
namespace {

struct Plans {
  std::mutex mutex;
  std::map<int, void*> streams;
  int next = 1;
};
Plans& plans() {
  static Plans* const all = new Plans;  // outlives the program's last plan, which torch destroys at exit
  return *all;
}

}  // namespace

SIMGPU_STUB int cufftCreate(int* plan) {
  const std::lock_guard lock(plans().mutex);
  *plan = plans().next++;
  plans().streams[*plan] = nullptr;
  return 0;
}
SIMGPU_STUB int cufftDestroy(int plan) {
  const std::lock_guard lock(plans().mutex);
  plans().streams.erase(plan);
  return 0;
}
SIMGPU_STUB int cufftSetStream(int plan, void* stream) {
  const std::lock_guard lock(plans().mutex);
  plans().streams[plan] = stream;
  return 0;
}
SIMGPU_STUB int cufftXtExec(int plan, void*, void*, int) {
  void* stream = nullptr;
  {
    const std::lock_guard lock(plans().mutex);
    stream = plans().streams[plan];
  }
  return launch(stream);
}

}  // namespace poolalloc::simgpu_stubs
