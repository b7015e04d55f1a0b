// The runtime's event calls.
#include "simgpu/capture.h"
#include "simgpu/cuda_abi.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace {

Error make_event(void** event, unsigned flags) {
  constexpr unsigned kKnown = abi::kEventBlockingSync | abi::kEventDisableTiming | abi::kEventInterprocess;
  if (!event || (flags & ~kKnown) != 0) return kInvalidValue;
  // Events of other processes cannot carry times.
  if ((flags & abi::kEventInterprocess) != 0 && (flags & abi::kEventDisableTiming) == 0) return kInvalidValue;
  const Lock lock = lock_sim();
  use_context();
  *event = reinterpret_cast<void*>(create_event(current_device(), flags)->handle);
  return kSuccess;
}

Error record(void* event, void* stream, unsigned flags, const char* caller) {
  const Lock lock = lock_sim();
  Event* found = resolve_event(event, caller);
  Stream* on = found ? resolve_stream(stream, caller) : nullptr;
  return on ? record_event(*found, *on, flags) : kInvalidHandle;
}

}  // namespace

SIMGPU_API int cudaEventCreate(void** event) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return make_event(event, abi::kEventDefault); });
}

SIMGPU_API int cudaEventCreateWithFlags(void** event, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return make_event(event, flags); });
}

SIMGPU_API int cudaEventDestroy(void* event) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    if (!resolve_event(event, "cudaEventDestroy")) return kInvalidHandle;
    sim().events.destroy(event);
    return kSuccess;
  });
}

SIMGPU_API int cudaEventRecord(void* event, void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return record(event, stream, abi::kEventRecordDefault, "cudaEventRecord"); });
}

SIMGPU_API int cudaEventRecordWithFlags(void* event, void* stream, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return record(event, stream, flags, "cudaEventRecordWithFlags"); });
}

SIMGPU_API int cudaEventQuery(void* event) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Event* found = resolve_event(event, "cudaEventQuery");
    return found ? query_event(*found, "cudaEventQuery") : kInvalidHandle;
  });
}

SIMGPU_API int cudaEventSynchronize(void* event) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Event* found = resolve_event(event, "cudaEventSynchronize");
    return found ? synchronize_event(*found) : kInvalidHandle;
  });
}

namespace {

Error elapsed(float* milliseconds, void* start, void* end) {
  const Lock lock = lock_sim();
  const Event* first = resolve_event(start, "cudaEventElapsedTime");
  const Event* second = resolve_event(end, "cudaEventElapsedTime");
  if (!milliseconds) return kInvalidValue;
  return first && second ? elapsed_ms(*first, *second, milliseconds) : kInvalidHandle;
}

}  // namespace

SIMGPU_API int cudaEventElapsedTime(float* milliseconds, void* start, void* end) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return elapsed(milliseconds, start, end); });
}

SIMGPU_API int cudaEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return elapsed(milliseconds, start, end); });
}

// --- the driver's event calls ------------------------------------------------------------------------------------

SIMGPU_API int cuEventCreate(void** event, unsigned flags) {
  SIM_COUNT_CALL();
  return context_call([&] { return make_event(event, flags); });
}

SIMGPU_API int cuEventDestroy_v2(void* event) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    const Lock lock = lock_sim();
    if (!resolve_event(event, "cuEventDestroy")) return kInvalidHandle;
    sim().events.destroy(event);
    return kSuccess;
  });
}

SIMGPU_API int cuEventRecord(void* event, void* stream) {
  SIM_COUNT_CALL();
  return context_call([&] { return record(event, stream, abi::kEventRecordDefault, "cuEventRecord"); });
}

SIMGPU_API int cuEventRecordWithFlags(void* event, void* stream, unsigned flags) {
  SIM_COUNT_CALL();
  return context_call([&] { return record(event, stream, flags, "cuEventRecordWithFlags"); });
}

SIMGPU_API int cuEventQuery(void* event) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    const Lock lock = lock_sim();
    Event* found = resolve_event(event, "cuEventQuery");
    return found ? query_event(*found, "cuEventQuery") : kInvalidHandle;
  });
}

SIMGPU_API int cuEventSynchronize(void* event) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    const Lock lock = lock_sim();
    Event* found = resolve_event(event, "cuEventSynchronize");
    return found ? synchronize_event(*found) : kInvalidHandle;
  });
}

SIMGPU_API int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  SIM_COUNT_CALL();
  return driver_call([&] { return elapsed(milliseconds, start, end); });
}

SIMGPU_API int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  SIM_COUNT_CALL();
  return driver_call([&] { return elapsed(milliseconds, start, end); });
}
