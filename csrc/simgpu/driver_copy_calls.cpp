// The driver's copies and fills.
#include "simgpu/copy_work.h"
#include "simgpu/report.h"

using namespace poolalloc::simgpu;

namespace {

template <class F>
int driver_on_stream(void* stream, const char* caller, F&& work) {
  return context_call([&] { return work_on(stream, caller, work); });
}

template <class F>
int driver_synchronously(F&& work) {
  return context_call([&] { return work_and_wait(work); });
}

void* pointer(abi::DevicePointer address) { return reinterpret_cast<void*>(address); }

}  // namespace

SIMGPU_API int cuMemcpy(abi::DevicePointer to, abi::DevicePointer from, std::size_t size) {
  SIM_COUNT_CALL();
  return driver_synchronously(
      [&](Stream& s) { return copy_on(s, pointer(to), pointer(from), size, abi::kCopyDefault, "cuMemcpy"); });
}

SIMGPU_API int cuMemcpyAsync(abi::DevicePointer to, abi::DevicePointer from, std::size_t size, void* stream) {
  SIM_COUNT_CALL();
  return driver_on_stream(stream, "cuMemcpyAsync", [&](Stream& s) {
    return copy_on(s, pointer(to), pointer(from), size, abi::kCopyDefault, "cuMemcpyAsync");
  });
}

SIMGPU_API int cuMemcpyHtoD_v2(abi::DevicePointer to, const void* from, std::size_t size) {
  SIM_COUNT_CALL();
  return driver_synchronously(
      [&](Stream& s) { return copy_on(s, pointer(to), from, size, abi::kHostToDevice, "cuMemcpyHtoD"); });
}

SIMGPU_API int cuMemcpyHtoDAsync_v2(abi::DevicePointer to, const void* from, std::size_t size, void* stream) {
  SIM_COUNT_CALL();
  return driver_on_stream(stream, "cuMemcpyHtoDAsync", [&](Stream& s) {
    return copy_on(s, pointer(to), from, size, abi::kHostToDevice, "cuMemcpyHtoDAsync");
  });
}

SIMGPU_API int cuMemcpyDtoH_v2(void* to, abi::DevicePointer from, std::size_t size) {
  SIM_COUNT_CALL();
  return driver_synchronously(
      [&](Stream& s) { return copy_on(s, to, pointer(from), size, abi::kDeviceToHost, "cuMemcpyDtoH"); });
}

SIMGPU_API int cuMemcpyDtoHAsync_v2(void* to, abi::DevicePointer from, std::size_t size, void* stream) {
  SIM_COUNT_CALL();
  return driver_on_stream(stream, "cuMemcpyDtoHAsync", [&](Stream& s) {
    return copy_on(s, to, pointer(from), size, abi::kDeviceToHost, "cuMemcpyDtoHAsync");
  });
}

SIMGPU_API int cuMemcpyDtoD_v2(abi::DevicePointer to, abi::DevicePointer from, std::size_t size) {
  SIM_COUNT_CALL();
  return driver_synchronously(
      [&](Stream& s) { return copy_on(s, pointer(to), pointer(from), size, abi::kDeviceToDevice, "cuMemcpyDtoD"); });
}

SIMGPU_API int cuMemcpyDtoDAsync_v2(abi::DevicePointer to, abi::DevicePointer from, std::size_t size, void* stream) {
  SIM_COUNT_CALL();
  return driver_on_stream(stream, "cuMemcpyDtoDAsync", [&](Stream& s) {
    return copy_on(s, pointer(to), pointer(from), size, abi::kDeviceToDevice, "cuMemcpyDtoDAsync");
  });
}

SIMGPU_API int cuMemsetD8_v2(abi::DevicePointer to, unsigned char value, std::size_t count) {
  SIM_COUNT_CALL();
  return driver_on_stream(nullptr, "cuMemsetD8",
                          [&](Stream& s) { return fill_on(s, pointer(to), value, 1, count, "cuMemsetD8"); });
}

SIMGPU_API int cuMemsetD8Async(abi::DevicePointer to, unsigned char value, std::size_t count, void* stream) {
  SIM_COUNT_CALL();
  return driver_on_stream(stream, "cuMemsetD8Async",
                          [&](Stream& s) { return fill_on(s, pointer(to), value, 1, count, "cuMemsetD8Async"); });
}

SIMGPU_API int cuMemsetD32_v2(abi::DevicePointer to, unsigned value, std::size_t count) {
  SIM_COUNT_CALL();
  return driver_on_stream(nullptr, "cuMemsetD32",
                          [&](Stream& s) { return fill_on(s, pointer(to), value, 4, count, "cuMemsetD32"); });
}

SIMGPU_API int cuMemsetD32Async(abi::DevicePointer to, unsigned value, std::size_t count, void* stream) {
  SIM_COUNT_CALL();
  return driver_on_stream(stream, "cuMemsetD32Async",
                          [&](Stream& s) { return fill_on(s, pointer(to), value, 4, count, "cuMemsetD32Async"); });
}

// Writes that order streams among processes or devices: the value really arrives.
SIMGPU_API int cuStreamWriteValue32_v2(void* stream, abi::DevicePointer to, std::uint32_t value, unsigned) {
  SIM_COUNT_CALL();
  return driver_on_stream(stream, "cuStreamWriteValue32",
                          [&](Stream& s) { return fill_on(s, pointer(to), value, 4, 1, "cuStreamWriteValue32"); });
}
