// The runtime's device calls: count, selection, properties, limits, peers, versions, synchronize, reset.
#include <cstring>
#include <iterator>
#include <string>

#include "simgpu/capture.h"
#include "simgpu/cuda_abi.h"
#include "simgpu/properties.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace {

template <class Properties>
int get_properties(Properties* properties, int device) {
  return runtime_call([&] {
    if (!properties) return kInvalidValue;
    if (!device_exists(device)) return kInvalidDevice;
    fill_properties(*sim().devices[static_cast<std::size_t>(device)], *properties);
    return kSuccess;
  });
}

// The driver's usual sizes of stack, printf buffer, heap, sync depth, pending launches, fetches and set-aside cache.
constexpr std::size_t kUsualLimits[] = {1024, 1 << 20, 8 << 20, 0, 2048, 64, 0};
constexpr int kLimits = static_cast<int>(std::size(kUsualLimits));

Error get_limit(int limit, std::size_t* value) {
  if (!value || limit < 0 || limit >= kLimits) return kUnsupportedLimit;
  const Lock lock = lock_sim();
  const auto found = current_device().limits.find(limit);
  *value = found == current_device().limits.end() ? kUsualLimits[limit] : found->second;
  return kSuccess;
}

Error set_limit(int limit, std::size_t value) {
  if (limit < 0 || limit >= kLimits) return kUnsupportedLimit;
  const Lock lock = lock_sim();
  use_context();
  current_device().limits[limit] = value;
  return kSuccess;
}

}  // namespace

SIMGPU_API int cudaGetDeviceCount(int* count) {
  SIM_COUNT_CALL();
  *count = static_cast<int>(sim().devices.size());
  return runtime_call([] { return kSuccess; });
}

SIMGPU_API int cudaGetDevice(int* device) {
  return runtime_call([&] {
    *device = thread_state().device;
    return kSuccess;
  });
}

SIMGPU_API int cudaSetDevice(int device) {
  return runtime_call([&] {
    if (!device_exists(device)) return kInvalidDevice;
    thread_state().device = device;
    use_context();
    return kSuccess;
  });
}

SIMGPU_API int cudaInitDevice(int device, unsigned, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!device_exists(device)) return kInvalidDevice;
    sim().devices[static_cast<std::size_t>(device)]->context_active = true;
    return kSuccess;
  });
}

SIMGPU_API int cudaSetValidDevices(int*, int) {
  return runtime_call([] { return kSuccess; });
}

SIMGPU_API int cudaGetDeviceProperties(abi::DeviceProp13* properties, int device) {
  SIM_COUNT_CALL();
  return get_properties(properties, device);
}

SIMGPU_API int cudaGetDeviceProperties_v2(abi::DeviceProp12* properties, int device) {
  SIM_COUNT_CALL();
  return get_properties(properties, device);
}

SIMGPU_API int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!device_exists(device)) return kInvalidDevice;
    return value ? device_attribute(*sim().devices[static_cast<std::size_t>(device)], attribute, value) : kInvalidValue;
  });
}

SIMGPU_API int cudaDeviceGetPCIBusId(char* text, int size, int device) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!device_exists(device)) return kInvalidDevice;
    const std::string id = pci_bus_id(sim().devices[static_cast<std::size_t>(device)]->physical_index);
    if (!text || size <= static_cast<int>(id.size())) return kInvalidValue;
    std::memcpy(text, id.c_str(), id.size() + 1);
    return kSuccess;
  });
}

SIMGPU_API int cudaDeviceGetByPCIBusId(int* device, const char* text) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    for (const auto& candidate : sim().devices) {
      if (pci_bus_id(candidate->physical_index) == text) {
        *device = candidate->index;
        return kSuccess;
      }
    }
    return kInvalidDevice;
  });
}

SIMGPU_API int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return kSuccess;
  });
}

SIMGPU_API int cudaDeviceSynchronize() {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    use_context();
    if (const Error error = check_device_sync(current_device()); error != kSuccess) return error;
    complete_device(current_device());
    return kSuccess;
  });
}

// Nothing of the program's is taken away: what it allocated stays counted, so that a later free is not a violation.
SIMGPU_API int cudaDeviceReset() {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    complete_device(current_device());
    return kSuccess;
  });
}

SIMGPU_API int cudaDeviceGetLimit(std::size_t* value, int limit) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return get_limit(limit, value); });
}

SIMGPU_API int cudaDeviceSetLimit(int limit, std::size_t value) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return set_limit(limit, value); });
}

SIMGPU_API int cuCtxGetLimit(std::size_t* value, int limit) {
  SIM_COUNT_CALL();
  return context_call([&] { return get_limit(limit, value); });
}

SIMGPU_API int cuCtxSetLimit(int limit, std::size_t value) {
  SIM_COUNT_CALL();
  return context_call([&] { return set_limit(limit, value); });
}

SIMGPU_API int cudaGetDeviceFlags(unsigned* flags) {
  return runtime_call([&] {
    const Lock lock = lock_sim();
    *flags = current_device().context_flags;
    return kSuccess;
  });
}

SIMGPU_API int cudaSetDeviceFlags(unsigned flags) {
  return runtime_call([&] {
    const Lock lock = lock_sim();
    current_device().context_flags = flags;
    return kSuccess;
  });
}

// --- peers -------------------------------------------------------------------------------------------------------

SIMGPU_API int cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!device_exists(device) || !device_exists(peer)) return kInvalidDevice;
    *can = connected(device, peer);
    return kSuccess;
  });
}

SIMGPU_API int cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    use_context();
    Device& device = current_device();
    if (!device_exists(peer) || peer == device.index) return kInvalidDevice;
    if (flags != 0) return kInvalidValue;
    if (!connected(device.index, peer)) return kPeerAccessUnsupported;
    if ((device.peers >> peer & 1) != 0) return kPeerAccessAlreadyEnabled;
    device.peers |= 1ull << peer;
    return kSuccess;
  });
}

SIMGPU_API int cudaDeviceDisablePeerAccess(int peer) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    Device& device = current_device();
    if (!device_exists(peer)) return kInvalidDevice;
    if ((device.peers >> peer & 1) == 0) return kPeerAccessNotEnabled;
    device.peers &= ~(1ull << peer);
    return kSuccess;
  });
}

SIMGPU_API int cudaDeviceGetP2PAttribute(int* value, int attribute, int device, int peer) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!device_exists(device) || !device_exists(peer) || device == peer) return kInvalidDevice;
    if (attribute < 1 || attribute > 4) return kInvalidValue;
    *value = attribute == 1 ? 0 : connected(device, peer);  // rank 0 is the best; then access, atomics and arrays
    return kSuccess;
  });
}

// --- versions, profiler ------------------------------------------------------------------------------------------

SIMGPU_API int cudaDriverGetVersion(int* version) {
  *version = driver_version();
  return kSuccess;
}

SIMGPU_API int cudaRuntimeGetVersion(int* version) {
  *version = runtime_version();
  return kSuccess;
}

SIMGPU_API int cudaProfilerStart() {
  SIM_COUNT_CALL();
  return runtime_call([] { return kSuccess; });
}

SIMGPU_API int cudaProfilerStop() {
  SIM_COUNT_CALL();
  return runtime_call([] { return kSuccess; });
}
