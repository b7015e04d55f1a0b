// What the stubs of NVIDIA's libraries share: the export marker, handles, launches, and the one workspace size.
// Not for the CUDA runtime or driver, which csrc/simgpu simulates: a stub reaches a device by their calls, as the real
// library does.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#define SIMGPU_STUB extern "C" __attribute__((visibility("default")))

namespace poolalloc::simgpu_stubs {

// What every "how large a workspace" query answers. The true sizes depend on algorithms that only the real library
// knows, so this is a token: small, yet large enough that the request shows up in an allocator's trace.
inline constexpr std::size_t kWorkspaceBytes = std::size_t{1} << 20;
inline constexpr int kWorkspaceElements = 1 << 16;

// What cublasCreate, cusolverDnCreate, cusparseCreate and cudnnCreate make. Their other calls take it first.
struct LibraryHandle {
  void* stream = nullptr;
  int pointer_mode = 0;
  int math_mode = 0;
};

// The work of a library call: one kernel on the stream, which orders it with events and forgets, as any kernel does,
// what the host wrote to the device. Returns a status that is success in every library if it is 0.
int launch(void* stream);

// Writes a result that the caller may not want.
template <typename Type>
void put(Type* to, Type value) {
  if (to != nullptr) {
    *to = value;
  }
}

// A fresh opaque handle. Distinct, because torch keys its workspaces by handle; not an address anyone may follow: the
// top bits make it non-canonical, so that a stray dereference faults instead of reading someone's memory.
inline void* new_handle() {
  static std::atomic<std::uintptr_t> next{std::uintptr_t{0x51A0} << 48};
  return reinterpret_cast<void*>(next.fetch_add(0x10));
}

}  // namespace poolalloc::simgpu_stubs
