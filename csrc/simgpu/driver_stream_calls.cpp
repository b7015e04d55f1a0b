// The driver's stream and capture calls (event_calls.cpp has the events of both).
#include "simgpu/cuda_abi.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"
#include "simgpu/stream_calls.h"

using namespace poolalloc::simgpu;

SIMGPU_API int cuStreamCreate(void** stream, unsigned flags) {
  SIM_COUNT_CALL();
  return context_call([&] { return make_stream(stream, flags, 0); });
}

SIMGPU_API int cuStreamCreateWithPriority(void** stream, unsigned flags, int priority) {
  SIM_COUNT_CALL();
  return context_call([&] { return make_stream(stream, flags, priority); });
}

SIMGPU_API int cuStreamDestroy_v2(void* stream) {
  SIM_COUNT_CALL();
  return driver_call([&] { return destroy_stream(stream, "cuStreamDestroy"); });
}

SIMGPU_API int cuStreamQuery(void* stream) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, "cuStreamQuery");
    return found ? query_stream(*found) : kInvalidHandle;
  });
}

SIMGPU_API int cuStreamSynchronize(void* stream) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, "cuStreamSynchronize");
    return found ? synchronize_stream(*found) : kInvalidHandle;
  });
}

SIMGPU_API int cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, "cuStreamWaitEvent");
    Event* awaited = resolve_event(event, "cuStreamWaitEvent");
    return found && awaited ? wait_event(*found, *awaited, flags) : kInvalidHandle;
  });
}

SIMGPU_API int cuStreamGetCtx(void* stream, void** context) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    const Stream* found = resolve_stream(stream, "cuStreamGetCtx");
    if (!found) return kInvalidHandle;
    *context = context_of(found->device->index);
    return kSuccess;
  });
}

SIMGPU_API int cuStreamGetId(void* stream, unsigned long long* id) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    const Stream* found = resolve_stream(stream, "cuStreamGetId");
    if (!found) return kInvalidHandle;
    *id = found->id;
    return kSuccess;
  });
}

SIMGPU_API int cuStreamGetPriority(void* stream, int* priority) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    const Stream* found = resolve_stream(stream, "cuStreamGetPriority");
    if (!found) return kInvalidHandle;
    *priority = found->priority;
    return kSuccess;
  });
}

SIMGPU_API int cuStreamGetFlags(void* stream, unsigned* flags) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    const Stream* found = resolve_stream(stream, "cuStreamGetFlags");
    if (!found) return kInvalidHandle;
    *flags = found->flags;
    return kSuccess;
  });
}

SIMGPU_API int cuLaunchHostFunc(void* stream, abi::HostFunction function, void* data) {
  SIM_COUNT_CALL();
  return context_call([&] { return launch_host_function(stream, function, data, "cuLaunchHostFunc"); });
}

SIMGPU_API int cuStreamBeginCapture_v2(void* stream, int mode) {
  SIM_COUNT_CALL();
  return context_call([&] { return begin_capture_call(stream, mode, "cuStreamBeginCapture"); });
}

SIMGPU_API int cuStreamEndCapture(void* stream, void** graph) {
  SIM_COUNT_CALL();
  return context_call([&] { return end_capture_call(stream, graph, "cuStreamEndCapture"); });
}

SIMGPU_API int cuStreamIsCapturing(void* stream, int* status) {
  SIM_COUNT_CALL();
  return context_call([&] {
    return capture_info(stream, {status, nullptr, nullptr, nullptr, nullptr, nullptr}, "cuStreamIsCapturing");
  });
}

SIMGPU_API int cuStreamGetCaptureInfo_v2(void* stream, int* status, unsigned long long* id, void** graph,
                                         void*** dependencies, std::size_t* count) {
  SIM_COUNT_CALL();
  return context_call([&] {
    return capture_info(stream, {status, id, graph, dependencies, nullptr, count}, "cuStreamGetCaptureInfo");
  });
}

SIMGPU_API int cuStreamGetCaptureInfo_v3(void* stream, int* status, unsigned long long* id, void** graph,
                                         void*** dependencies, const abi::GraphEdgeData** edges, std::size_t* count) {
  SIM_COUNT_CALL();
  return context_call(
      [&] { return capture_info(stream, {status, id, graph, dependencies, edges, count}, "cuStreamGetCaptureInfo"); });
}

SIMGPU_API int cuThreadExchangeStreamCaptureMode(int* mode) {
  SIM_COUNT_CALL();
  return driver_call([&] { return exchange_capture_mode(mode); });
}
