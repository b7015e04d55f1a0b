// The runtime's copies and fills.
#include "simgpu/copy_work.h"
#include "simgpu/module.h"
#include "simgpu/report.h"

using namespace poolalloc::simgpu;

namespace {

template <class F>
int on_stream(void* stream, const char* caller, F&& work) {
  return runtime_call([&] { return work_on(stream, caller, work); });
}

template <class F>
int synchronously(F&& work) {
  return runtime_call([&] { return work_and_wait(work); });
}

}  // namespace

// --- copies ------------------------------------------------------------------------------------------------------

SIMGPU_API int cudaMemcpy(void* to, const void* from, std::size_t size, int kind) {
  SIM_COUNT_CALL();
  return synchronously([&](Stream& stream) { return copy_on(stream, to, from, size, kind, "cudaMemcpy"); });
}

SIMGPU_API int cudaMemcpyAsync(void* to, const void* from, std::size_t size, int kind, void* stream) {
  SIM_COUNT_CALL();
  return on_stream(stream, "cudaMemcpyAsync",
                   [&](Stream& found) { return copy_on(found, to, from, size, kind, "cudaMemcpyAsync"); });
}

SIMGPU_API int cudaMemcpyPeer(void* to, int to_device, const void* from, int from_device, std::size_t size) {
  SIM_COUNT_CALL();
  if (!device_exists(to_device) || !device_exists(from_device)) return runtime_call([] { return kInvalidDevice; });
  return synchronously(
      [&](Stream& stream) { return copy_on(stream, to, from, size, abi::kDeviceToDevice, "cudaMemcpyPeer"); });
}

SIMGPU_API int cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, std::size_t size,
                                   void* stream) {
  SIM_COUNT_CALL();
  if (!device_exists(to_device) || !device_exists(from_device)) return runtime_call([] { return kInvalidDevice; });
  return on_stream(stream, "cudaMemcpyPeerAsync", [&](Stream& found) {
    return copy_on(found, to, from, size, abi::kDeviceToDevice, "cudaMemcpyPeerAsync");
  });
}

SIMGPU_API int cudaMemcpyBatchAsync(void* const* to, const void* const* from, const std::size_t* sizes,
                                    std::size_t count, void*, std::size_t*, std::size_t, void* stream) {
  SIM_COUNT_CALL();
  return on_stream(stream, "cudaMemcpyBatchAsync", [&](Stream& found) {
    for (std::size_t i = 0; i < count; ++i) {
      const Error error = copy_on(found, to[i], from[i], sizes[i], abi::kCopyDefault, "cudaMemcpyBatchAsync");
      if (error != kSuccess) return error;
    }
    return kSuccess;
  });
}

SIMGPU_API int cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                            std::size_t height, int kind) {
  SIM_COUNT_CALL();
  return synchronously([&](Stream& stream) {
    return copy_rows_on(stream, to, from, {to_pitch, from_pitch, width, height}, kind, "cudaMemcpy2D");
  });
}

SIMGPU_API int cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                                 std::size_t width, std::size_t height, int kind, void* stream) {
  SIM_COUNT_CALL();
  return on_stream(stream, "cudaMemcpy2DAsync", [&](Stream& found) {
    return copy_rows_on(found, to, from, {to_pitch, from_pitch, width, height}, kind, "cudaMemcpy2DAsync");
  });
}

SIMGPU_API int cudaMemcpy3D(const abi::Memcpy3DParms* parameters) {
  SIM_COUNT_CALL();
  return synchronously([&](Stream& stream) { return copy_3d_on(stream, *parameters, "cudaMemcpy3D"); });
}

SIMGPU_API int cudaMemcpy3DAsync(const abi::Memcpy3DParms* parameters, void* stream) {
  SIM_COUNT_CALL();
  return on_stream(stream, "cudaMemcpy3DAsync",
                   [&](Stream& found) { return copy_3d_on(found, *parameters, "cudaMemcpy3DAsync"); });
}

// --- symbols -----------------------------------------------------------------------------------------------------

SIMGPU_API int cudaMemcpyToSymbol(const void* symbol, const void* from, std::size_t size, std::size_t offset,
                                  int kind) {
  SIM_COUNT_CALL();
  return synchronously([&](Stream& stream) {
    char* const to = symbol_address(symbol);
    return to ? copy_on(stream, to + offset, from, size, kind, "cudaMemcpyToSymbol") : kInvalidSymbol;
  });
}

SIMGPU_API int cudaMemcpyToSymbolAsync(const void* symbol, const void* from, std::size_t size, std::size_t offset,
                                       int kind, void* stream) {
  SIM_COUNT_CALL();
  return on_stream(stream, "cudaMemcpyToSymbolAsync", [&](Stream& found) {
    char* const to = symbol_address(symbol);
    return to ? copy_on(found, to + offset, from, size, kind, "cudaMemcpyToSymbolAsync") : kInvalidSymbol;
  });
}

SIMGPU_API int cudaMemcpyFromSymbol(void* to, const void* symbol, std::size_t size, std::size_t offset, int kind) {
  SIM_COUNT_CALL();
  return synchronously([&](Stream& stream) {
    const char* const from = symbol_address(symbol);
    return from ? copy_on(stream, to, from + offset, size, kind, "cudaMemcpyFromSymbol") : kInvalidSymbol;
  });
}

SIMGPU_API int cudaMemcpyFromSymbolAsync(void* to, const void* symbol, std::size_t size, std::size_t offset, int kind,
                                         void* stream) {
  SIM_COUNT_CALL();
  return on_stream(stream, "cudaMemcpyFromSymbolAsync", [&](Stream& found) {
    const char* const from = symbol_address(symbol);
    return from ? copy_on(found, to, from + offset, size, kind, "cudaMemcpyFromSymbolAsync") : kInvalidSymbol;
  });
}

// --- fills -------------------------------------------------------------------------------------------------------

SIMGPU_API int cudaMemset(void* to, int value, std::size_t size) {
  SIM_COUNT_CALL();
  return on_stream(nullptr, "cudaMemset", [&](Stream& stream) {
    return fill_on(stream, to, static_cast<std::uint32_t>(value), 1, size, "cudaMemset");
  });
}

SIMGPU_API int cudaMemsetAsync(void* to, int value, std::size_t size, void* stream) {
  SIM_COUNT_CALL();
  return on_stream(stream, "cudaMemsetAsync", [&](Stream& found) {
    return fill_on(found, to, static_cast<std::uint32_t>(value), 1, size, "cudaMemsetAsync");
  });
}

SIMGPU_API int cudaMemset2D(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height) {
  SIM_COUNT_CALL();
  return on_stream(nullptr, "cudaMemset2D", [&](Stream& stream) {
    return fill_rows_on(stream, to, pitch, value, width, height, "cudaMemset2D");
  });
}

SIMGPU_API int cudaMemset2DAsync(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height,
                                 void* stream) {
  SIM_COUNT_CALL();
  return on_stream(stream, "cudaMemset2DAsync", [&](Stream& found) {
    return fill_rows_on(found, to, pitch, value, width, height, "cudaMemset2DAsync");
  });
}
