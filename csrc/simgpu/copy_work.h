// Copies and fills as work of a stream: checked, then done now or kept in the graph that the stream captures. Shared by
// the runtime's and the driver's calls. The first five expect the simulator's lock; the frames below them take it.
#pragma once

#include <cstdint>

#include "simgpu/capture.h"
#include "simgpu/copy.h"
#include "simgpu/cuda_abi.h"
#include "simgpu/errors.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {

Error copy_on(Stream& stream, void* to, const void* from, std::uint64_t size, int kind, const char* caller);
Error copy_rows_on(Stream& stream, void* to, const void* from, const Rows& rows, int kind, const char* caller);
Error copy_3d_on(Stream& stream, const abi::Memcpy3DParms& parameters, const char* caller);
Error fill_on(Stream& stream, void* to, std::uint32_t value, unsigned width, std::uint64_t count, const char* caller);
Error fill_rows_on(Stream& stream, void* to, std::uint64_t pitch, int value, std::uint64_t width, std::uint64_t height,
                   const char* caller);

// Work on the stream a caller names.
template <class F>
Error work_on(void* stream, const char* caller, F&& work) {
  const Lock lock = lock_sim();
  use_context();
  Stream* found = resolve_stream(stream, caller);
  return found ? work(*found) : kInvalidHandle;
}

// Work that the host waits for: it goes to the legacy stream and may not run during a capture.
template <class F>
Error work_and_wait(F&& work) {
  const Lock lock = lock_sim();
  use_context();
  if (const Error error = check_legacy_sync(); error != kSuccess) return error;
  Stream& legacy = *current_device().legacy;
  const Error error = work(legacy);
  return error == kSuccess ? synchronize_stream(legacy) : error;
}

}  // namespace poolalloc::simgpu
