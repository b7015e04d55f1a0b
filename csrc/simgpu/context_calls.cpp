// The driver's devices and contexts: initialization, properties, primary contexts and the thread's stack of contexts.
#include <cstring>

#include "simgpu/capture.h"
#include "simgpu/cuda_abi.h"
#include "simgpu/properties.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace {

Device& device_at(int device) { return *sim().devices[static_cast<std::size_t>(device)]; }

// Frame of a driver call about one device.
template <class F>
int device_call(int device, F&& call) {
  return driver_call([&] { return device_exists(device) ? call(device_at(device)) : kInvalidDevice; });
}

Error set_current(const void* context) {
  if (!context) {
    thread_state().context_current = false;
    thread_state().device = 0;  // what cudaGetDevice says of a thread without a context
    return kSuccess;
  }
  const int device = device_of_context(context);
  if (device < 0) return kInvalidContext;
  thread_state().device = device;
  thread_state().context_current = true;
  return kSuccess;
}

void* current() { return thread_state().context_current ? context_of(thread_state().device) : nullptr; }

constexpr int kNoContext = -1;

}  // namespace

SIMGPU_API int cuInit(unsigned flags) {
  SIM_COUNT_CALL();
  if (flags != 0) return kInvalidValue;
  const Error error = availability();
  if (error == kSuccess) sim().driver_initialized = true;
  return error;
}

SIMGPU_API int cuDriverGetVersion(int* version) {
  *version = driver_version();
  return kSuccess;
}

SIMGPU_API int cuDeviceGetCount(int* count) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    *count = static_cast<int>(sim().devices.size());
    return kSuccess;
  });
}

SIMGPU_API int cuDeviceGet(int* device, int ordinal) {
  SIM_COUNT_CALL();
  return device_call(ordinal, [&](Device& found) {
    *device = found.index;
    return kSuccess;
  });
}

SIMGPU_API int cuDeviceGetName(char* name, int size, int device) {
  SIM_COUNT_CALL();
  return device_call(device, [&](Device&) {
    if (!name || size <= 0) return kInvalidValue;
    std::strncpy(name, sim().config.card->name, static_cast<std::size_t>(size) - 1);
    name[size - 1] = '\0';
    return kSuccess;
  });
}

SIMGPU_API int cuDeviceGetAttribute(int* value, int attribute, int device) {
  SIM_COUNT_CALL();
  return device_call(device,
                     [&](Device& found) { return value ? device_attribute(found, attribute, value) : kInvalidValue; });
}

SIMGPU_API int cuDeviceTotalMem_v2(std::size_t* bytes, int device) {
  SIM_COUNT_CALL();
  return device_call(device, [&](Device& found) {
    *bytes = found.capacity;
    return kSuccess;
  });
}

SIMGPU_API int cuDeviceGetUuid_v2(char (*uuid)[16], int device) {
  SIM_COUNT_CALL();
  return device_call(device, [&](Device& found) {
    fill_uuid(found.physical_index, *uuid);
    return kSuccess;
  });
}

SIMGPU_API int cuDeviceGetPCIBusId(char* text, int size, int device) {
  SIM_COUNT_CALL();
  return device_call(device, [&](Device& found) {
    const std::string id = pci_bus_id(found.physical_index);
    if (!text || size <= static_cast<int>(id.size())) return kInvalidValue;
    std::memcpy(text, id.c_str(), id.size() + 1);
    return kSuccess;
  });
}

SIMGPU_API int cuDeviceCanAccessPeer(int* can, int device, int peer) {
  SIM_COUNT_CALL();
  return device_call(device, [&](Device&) {
    if (!device_exists(peer)) return kInvalidDevice;
    *can = connected(device, peer);
    return kSuccess;
  });
}

// --- primary contexts --------------------------------------------------------------------------------------------

SIMGPU_API int cuDevicePrimaryCtxRetain(void** context, int device) {
  SIM_COUNT_CALL();
  return device_call(device, [&](Device& found) {
    const Lock lock = lock_sim();
    found.context_active = true;
    ++found.context_references;
    *context = context_of(device);
    return kSuccess;
  });
}

// The context stays: whatever else in the process uses the device holds it too.
SIMGPU_API int cuDevicePrimaryCtxRelease_v2(int device) {
  SIM_COUNT_CALL();
  return device_call(device, [&](Device& found) {
    const Lock lock = lock_sim();
    if (found.context_references == 0) return kInvalidContext;
    --found.context_references;
    return kSuccess;
  });
}

SIMGPU_API int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  SIM_COUNT_CALL();
  return device_call(device, [&](Device& found) {
    const Lock lock = lock_sim();
    if (flags) *flags = found.context_flags;
    if (active) *active = found.context_active;
    return kSuccess;
  });
}

SIMGPU_API int cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags) {
  SIM_COUNT_CALL();
  return device_call(device, [&](Device& found) {
    const Lock lock = lock_sim();
    found.context_flags = flags;
    return kSuccess;
  });
}

// --- the thread's contexts ---------------------------------------------------------------------------------------

SIMGPU_API int cuCtxGetCurrent(void** context) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    *context = current();
    return kSuccess;
  });
}

SIMGPU_API int cuCtxSetCurrent(void* context) {
  SIM_COUNT_CALL();
  return driver_call([&] { return set_current(context); });
}

SIMGPU_API int cuCtxPushCurrent_v2(void* context) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    ThreadState& state = thread_state();
    constexpr int kDepth = sizeof state.context_stack / sizeof state.context_stack[0];
    if (!context || device_of_context(context) < 0 || state.context_depth == kDepth) return kInvalidContext;
    state.context_stack[state.context_depth++] = state.context_current ? state.device : kNoContext;
    return set_current(context);
  });
}

SIMGPU_API int cuCtxPopCurrent_v2(void** context) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    ThreadState& state = thread_state();
    if (!state.context_current) return kInvalidContext;
    if (context) *context = current();
    const int below = state.context_depth > 0 ? state.context_stack[--state.context_depth] : kNoContext;
    return set_current(below == kNoContext ? nullptr : context_of(below));
  });
}

SIMGPU_API int cuCtxGetDevice(int* device) {
  SIM_COUNT_CALL();
  return context_call([&] {
    *device = thread_state().device;
    return kSuccess;
  });
}

SIMGPU_API int cuCtxSynchronize() {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    if (const Error error = check_device_sync(current_device()); error != kSuccess) return error;
    complete_device(current_device());
    return kSuccess;
  });
}

SIMGPU_API int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  SIM_COUNT_CALL();
  return context_call([&] {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return kSuccess;
  });
}

SIMGPU_API int cuCtxGetApiVersion(void*, unsigned* version) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    *version = 3020;  // the number that every driver since CUDA 3.2 gives
    return kSuccess;
  });
}

SIMGPU_API int cuCtxEnablePeerAccess(void* peer_context, unsigned flags) {
  SIM_COUNT_CALL();
  return context_call([&] {
    const Lock lock = lock_sim();
    const int peer = device_of_context(peer_context);
    Device& device = current_device();
    if (peer < 0 || peer == device.index) return kInvalidContext;
    if (flags != 0) return kInvalidValue;
    if (!connected(device.index, peer)) return kPeerAccessUnsupported;
    if ((device.peers >> peer & 1) != 0) return kPeerAccessAlreadyEnabled;
    device.peers |= 1ull << peer;
    return kSuccess;
  });
}

SIMGPU_API int cuProfilerStart() {
  return driver_call([] { return kSuccess; });
}
SIMGPU_API int cuProfilerStop() {
  return driver_call([] { return kSuccess; });
}
