// The runtime's stream calls, capture among them, and host functions.
#include "simgpu/stream_calls.h"

#include <cstring>

#include "simgpu/capture.h"
#include "simgpu/cuda_abi.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace poolalloc::simgpu {

Error make_stream(void** stream, unsigned flags, int priority) {
  if (!stream || flags > abi::kStreamNonBlocking) return kInvalidValue;
  const Lock lock = lock_sim();
  use_context();
  *stream = reinterpret_cast<void*>(create_stream(current_device(), flags, priority)->handle);
  return kSuccess;
}

Error destroy_stream(void* stream, const char* caller) {
  const Lock lock = lock_sim();
  Stream* found = resolve_stream(stream, caller);
  if (!found || !sim().streams.find(stream)) return kInvalidHandle;
  // Destroying a stream in capture ends the capture in failure.
  if (found->capture) invalidate(*found->capture, kCaptureInvalidatedError);
  sim().streams.destroy(stream);
  return kSuccess;
}

Error launch_host_function(void* stream, abi::HostFunction function, void* data, const char* caller) {
  {
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, caller);
    if (!found) return kInvalidHandle;
    if (!function) return kInvalidValue;
    if (const Error error = check_capture_for_work(*found); error != kSuccess) return error;
    if (found->capture) {
      GraphNode& node = capture_node(*found, abi::kNodeHost);
      node.host_function = function;
      node.host_data = data;
      return kSuccess;
    }
    run_work(*found, abi::kNodeHost, {});
  }
  function(data);
  return kSuccess;
}

Error capture_info(void* stream, CaptureInfo out, const char* caller) {
  const Lock lock = lock_sim();
  Stream* found = resolve_stream(stream, caller);
  if (!found) return kInvalidHandle;
  if (!out.status) return kInvalidValue;
  if (found->legacy && !sim().captures.empty()) {
    for (const auto& capture : sim().captures) {
      for (const std::uint64_t handle : capture->participants) {
        const Stream* participant = sim().streams.find(handle);
        if (participant && participant->device == found->device && participant->blocking()) return kCaptureImplicit;
      }
    }
  }
  if (!found->capture) {
    *out.status = abi::kCaptureNone;
    return kSuccess;
  }
  const Capture& capture = *found->capture;
  *out.status = capture.invalidated ? abi::kCaptureInvalidated : abi::kCaptureActive;
  if (out.id) *out.id = capture.id;
  if (out.graph) *out.graph = reinterpret_cast<void*>(capture.graph);
  if (out.dependencies) {
    found->dependencies_out.clear();
    for (const std::uint64_t node : found->dependencies) {
      found->dependencies_out.push_back(reinterpret_cast<void*>(node));
    }
    *out.dependencies = found->dependencies_out.data();
  }
  if (out.edges) *out.edges = nullptr;
  if (out.count) *out.count = found->dependencies.size();
  return kSuccess;
}

Error exchange_capture_mode(int* mode) {
  if (!mode || *mode < abi::kCaptureGlobal || *mode > abi::kCaptureRelaxed) return kInvalidValue;
  std::swap(*mode, thread_state().capture_mode);
  return kSuccess;
}

Error begin_capture_call(void* stream, int mode, const char* caller) {
  const Lock lock = lock_sim();
  Stream* found = resolve_stream(stream, caller);
  return found ? begin_capture(*found, mode, nullptr, {}) : kInvalidHandle;
}

Error end_capture_call(void* stream, void** graph, const char* caller) {
  Deferred deferred;
  Error error;
  {
    const Lock lock = lock_sim();
    if (!graph) return kInvalidValue;
    *graph = nullptr;
    Stream* found = resolve_stream(stream, caller);
    if (!found) return kInvalidHandle;
    Graph* captured = nullptr;
    error = end_capture(*found, &captured, deferred);
    if (captured) *graph = reinterpret_cast<void*>(captured->handle);
  }
  for (const auto& [function, data] : deferred) function(data);
  return error;
}

}  // namespace poolalloc::simgpu

// --- making and waiting ------------------------------------------------------------------------------------------

SIMGPU_API int cudaStreamCreate(void** stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return make_stream(stream, abi::kStreamDefault, 0); });
}

SIMGPU_API int cudaStreamCreateWithFlags(void** stream, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return make_stream(stream, flags, 0); });
}

SIMGPU_API int cudaStreamCreateWithPriority(void** stream, unsigned flags, int priority) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return make_stream(stream, flags, priority); });
}

SIMGPU_API int cudaStreamDestroy(void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return destroy_stream(stream, "cudaStreamDestroy"); });
}

SIMGPU_API int cudaStreamQuery(void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, "cudaStreamQuery");
    return found ? query_stream(*found) : kInvalidHandle;
  });
}

SIMGPU_API int cudaStreamSynchronize(void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    use_context();
    Stream* found = resolve_stream(stream, "cudaStreamSynchronize");
    return found ? synchronize_stream(*found) : kInvalidHandle;
  });
}

SIMGPU_API int cudaStreamWaitEvent(void* stream, void* event, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, "cudaStreamWaitEvent");
    Event* awaited = resolve_event(event, "cudaStreamWaitEvent");
    return found && awaited ? wait_event(*found, *awaited, flags) : kInvalidHandle;
  });
}

SIMGPU_API int cudaStreamGetPriority(void* stream, int* priority) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Stream* found = resolve_stream(stream, "cudaStreamGetPriority");
    if (!found) return kInvalidHandle;
    *priority = found->priority;
    return kSuccess;
  });
}

SIMGPU_API int cudaStreamGetFlags(void* stream, unsigned* flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Stream* found = resolve_stream(stream, "cudaStreamGetFlags");
    if (!found) return kInvalidHandle;
    *flags = found->flags;
    return kSuccess;
  });
}

SIMGPU_API int cudaStreamGetId(void* stream, unsigned long long* id) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Stream* found = resolve_stream(stream, "cudaStreamGetId");
    if (!found) return kInvalidHandle;
    *id = found->id;
    return kSuccess;
  });
}

SIMGPU_API int cudaStreamGetDevice(void* stream, int* device) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Stream* found = resolve_stream(stream, "cudaStreamGetDevice");
    if (!found) return kInvalidHandle;
    *device = found->device->index;
    return kSuccess;
  });
}

// --- host functions ----------------------------------------------------------------------------------------------

SIMGPU_API int cudaLaunchHostFunc(void* stream, abi::HostFunction function, void* data) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return launch_host_function(stream, function, data, "cudaLaunchHostFunc"); });
}

SIMGPU_API int cudaLaunchHostFunc_v2(void* stream, abi::HostFunction function, void* data, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return launch_host_function(stream, function, data, "cudaLaunchHostFunc_v2"); });
}

SIMGPU_API int cudaStreamAddCallback(void* stream, void (*callback)(void*, int, void*), void* data, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    {
      const Lock lock = lock_sim();
      Stream* found = resolve_stream(stream, "cudaStreamAddCallback");
      if (!found) return kInvalidHandle;
      if (!callback) return kInvalidValue;
      // Callbacks, unlike host functions, cannot be captured.
      if (found->capture) return invalidate(*found->capture, kCaptureUnsupported);
      if (const Error error = check_capture_for_work(*found); error != kSuccess) return error;
      run_work(*found, abi::kNodeHost, {});
    }
    callback(stream, kSuccess, data);
    return kSuccess;
  });
}

// --- capture -----------------------------------------------------------------------------------------------------

SIMGPU_API int cudaStreamBeginCapture(void* stream, int mode) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return begin_capture_call(stream, mode, "cudaStreamBeginCapture"); });
}

SIMGPU_API int cudaStreamBeginCaptureToGraph(void* stream, void* graph, void* const* dependencies,
                                             const abi::GraphEdgeData*, std::size_t count, int mode) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, "cudaStreamBeginCaptureToGraph");
    if (!found) return kInvalidHandle;
    Graph* into = sim().graphs.find(graph);
    if (!into) return kInvalidValue;
    std::vector<std::uint64_t> nodes;
    for (std::size_t i = 0; i < count; ++i) {
      const GraphNode* node = sim().nodes.find(dependencies[i]);
      if (!node || node->graph != into->handle) return kInvalidValue;
      nodes.push_back(node->handle);
    }
    return begin_capture(*found, mode, into, std::move(nodes));
  });
}

SIMGPU_API int cudaStreamEndCapture(void* stream, void** graph) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return end_capture_call(stream, graph, "cudaStreamEndCapture"); });
}

SIMGPU_API int cudaStreamIsCapturing(void* stream, int* status) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    return capture_info(stream, {status, nullptr, nullptr, nullptr, nullptr, nullptr}, "cudaStreamIsCapturing");
  });
}

// The signature of CUDA 13, and of _v3 in CUDA 12.
SIMGPU_API int cudaStreamGetCaptureInfo(void* stream, int* status, unsigned long long* id, void** graph,
                                        void*** dependencies, const abi::GraphEdgeData** edges, std::size_t* count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    return capture_info(stream, {status, id, graph, dependencies, edges, count}, "cudaStreamGetCaptureInfo");
  });
}

SIMGPU_API int cudaStreamGetCaptureInfo_v3(void* stream, int* status, unsigned long long* id, void** graph,
                                           void*** dependencies, const abi::GraphEdgeData** edges, std::size_t* count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    return capture_info(stream, {status, id, graph, dependencies, edges, count}, "cudaStreamGetCaptureInfo_v3");
  });
}

SIMGPU_API int cudaStreamGetCaptureInfo_v2(void* stream, int* status, unsigned long long* id, void** graph,
                                           void*** dependencies, std::size_t* count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    return capture_info(stream, {status, id, graph, dependencies, nullptr, count}, "cudaStreamGetCaptureInfo_v2");
  });
}

SIMGPU_API int cudaStreamUpdateCaptureDependencies(void* stream, void** dependencies, const abi::GraphEdgeData*,
                                                   std::size_t count, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Stream* found = resolve_stream(stream, "cudaStreamUpdateCaptureDependencies");
    if (!found) return kInvalidHandle;
    if (!found->capture) return kIllegalState;
    if (flags > abi::kSetDependencies) return kInvalidValue;
    std::vector<std::uint64_t> nodes;
    if (flags == abi::kAddDependencies) nodes = found->dependencies;
    for (std::size_t i = 0; i < count; ++i) {
      const GraphNode* node = sim().nodes.find(dependencies[i]);
      if (!node || node->graph != found->capture->graph) return kInvalidValue;
      nodes.push_back(node->handle);
    }
    found->dependencies = std::move(nodes);
    return kSuccess;
  });
}

SIMGPU_API int cudaThreadExchangeStreamCaptureMode(int* mode) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return exchange_capture_mode(mode); });
}
