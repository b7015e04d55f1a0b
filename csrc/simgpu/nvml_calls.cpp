// The little of NVML that torch and monitors use: which devices there are, and their memory. Torch 2.15 takes the
// library for granted wherever expandable segments work. Sensors (temperature, power, utilization) say that they are
// not supported.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "simgpu/properties.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace {

enum Result : int { kOk = 0, kUninitialized = 1, kInvalidArgument = 2, kUnsupported = 3, kMissing = 6, kTooSmall = 7 };

// Devices are numbered as the machine has them: CUDA_VISIBLE_DEVICES does not apply to NVML.
int index_of(const void* device) { return static_cast<int>(reinterpret_cast<std::intptr_t>(device)) - 1; }
bool known(const void* device) { return index_of(device) >= 0 && index_of(device) < sim().config.devices; }

struct Usage {
  std::uint64_t total, used;
};

// What this process uses of a device.
std::uint64_t used_here(const void* device) {
  for (const auto& candidate : sim().devices) {
    if (candidate->physical_index == index_of(device)) return candidate->used;
  }
  return 0;
}

// What is used of a device by this process, or by all that share it.
Usage usage_of(const void* device) {
  const Lock lock = lock_sim();
  SharedCard* card = sim().card.get();
  return {sim().config.memory_bytes, card ? card->used(index_of(device)) : used_here(device)};
}

// Who uses a device: this process first.
std::vector<ProcessUse> users_of(const void* device) {
  const Lock lock = lock_sim();
  std::vector<ProcessUse> found{{getpid(), used_here(device)}};
  if (SharedCard* card = sim().card.get()) {
    for (const ProcessUse& user : card->processes(index_of(device))) {
      if (user.process != getpid()) found.push_back(user);
    }
  }
  return found;
}

int put_text(const std::string& text, char* out, unsigned size) {
  if (!out) return kInvalidArgument;
  if (size <= text.size()) return kTooSmall;
  std::memcpy(out, text.c_str(), text.size() + 1);
  return kOk;
}

struct Memory {
  unsigned long long total, free, used;
};
struct MemoryV2 {
  unsigned version;
  unsigned long long total, reserved, free, used;
};
struct Process {
  unsigned pid;
  unsigned long long used;
};
struct ProcessV2 {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
};

template <class Info>
int running_processes(const void* device, unsigned* count, Info* infos) {
  if (!known(device) || !count) return kInvalidArgument;
  const std::vector<ProcessUse> users = users_of(device);
  const unsigned room = *count;
  *count = static_cast<unsigned>(users.size());
  if (room < users.size() || !infos) return kTooSmall;
  for (const ProcessUse& user : users) {
    *infos = {};
    infos->pid = static_cast<unsigned>(user.process);
    infos->used = user.used;
    ++infos;
  }
  return kOk;
}

struct FabricInfo {
  unsigned version;
  unsigned char cluster[16];
  int status;
  unsigned clique;
  unsigned char state;
  unsigned health;
};

}  // namespace

SIMGPU_API int nvmlInit() { return sim().config.devices > 0 ? kOk : kUninitialized; }
SIMGPU_API int nvmlInit_v2() { return nvmlInit(); }
SIMGPU_API int nvmlInitWithFlags(unsigned) { return nvmlInit(); }
SIMGPU_API int nvmlShutdown() { return kOk; }

SIMGPU_API const char* nvmlErrorString(int result) {
  switch (result) {
    case kOk:
      return "Success";
    case kUninitialized:
      return "Uninitialized";
    case kInvalidArgument:
      return "Invalid Argument";
    case kUnsupported:
      return "Not Supported";
    case kMissing:
      return "Not Found";
    case kTooSmall:
      return "Insufficient Size";
    default:
      return "Unknown Error";
  }
}

SIMGPU_API int nvmlSystemGetDriverVersion(char* text, unsigned size) {
  return put_text("simgpu " + std::to_string(driver_version()), text, size);
}

SIMGPU_API int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = driver_version();
  return kOk;
}
SIMGPU_API int nvmlSystemGetCudaDriverVersion(int* version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

SIMGPU_API int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = static_cast<unsigned>(sim().config.devices);
  return kOk;
}

SIMGPU_API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if (index >= static_cast<unsigned>(sim().config.devices)) return kInvalidArgument;
  *device = reinterpret_cast<void*>(static_cast<std::intptr_t>(index) + 1);
  return kOk;
}

// Torch writes the domain with eight digits where CUDA writes four.
SIMGPU_API int nvmlDeviceGetHandleByPciBusId_v2(const char* text, void** device) {
  unsigned domain = 0, bus = 0, slot = 0;
  if (!text || std::sscanf(text, "%x:%x:%x", &domain, &bus, &slot) != 3) return kInvalidArgument;
  for (int index = 0; index < sim().config.devices; ++index) {
    if (domain == 0 && slot == 0 && static_cast<int>(bus) == pci_bus(index)) {
      return nvmlDeviceGetHandleByIndex_v2(static_cast<unsigned>(index), device);
    }
  }
  return kMissing;
}

SIMGPU_API int nvmlDeviceGetHandleByUUID(const char* text, void** device) {
  for (int index = 0; text && index < sim().config.devices; ++index) {
    if (uuid_text(index) == text) return nvmlDeviceGetHandleByIndex_v2(static_cast<unsigned>(index), device);
  }
  return kMissing;
}

SIMGPU_API int nvmlDeviceGetIndex(const void* device, unsigned* index) {
  if (!known(device)) return kInvalidArgument;
  *index = static_cast<unsigned>(index_of(device));
  return kOk;
}

SIMGPU_API int nvmlDeviceGetName(const void* device, char* text, unsigned size) {
  return known(device) ? put_text(sim().config.card->name, text, size) : kInvalidArgument;
}

SIMGPU_API int nvmlDeviceGetUUID(const void* device, char* text, unsigned size) {
  return known(device) ? put_text(uuid_text(index_of(device)), text, size) : kInvalidArgument;
}

SIMGPU_API int nvmlDeviceGetCudaComputeCapability(const void* device, int* major, int* minor) {
  if (!known(device)) return kInvalidArgument;
  *major = sim().config.card->major;
  *minor = sim().config.card->minor;
  return kOk;
}

SIMGPU_API int nvmlDeviceGetMemoryInfo(const void* device, Memory* memory) {
  if (!known(device) || !memory) return kInvalidArgument;
  const Usage usage = usage_of(device);
  *memory = {usage.total, usage.total - usage.used, usage.used};
  return kOk;
}

SIMGPU_API int nvmlDeviceGetMemoryInfo_v2(const void* device, MemoryV2* memory) {
  if (!known(device) || !memory) return kInvalidArgument;
  const Usage usage = usage_of(device);
  *memory = {memory->version, usage.total, 0, usage.total - usage.used, usage.used};
  return kOk;
}

SIMGPU_API int nvmlDeviceGetComputeRunningProcesses(const void* device, unsigned* count, Process* infos) {
  return running_processes(device, count, infos);
}
SIMGPU_API int nvmlDeviceGetComputeRunningProcesses_v2(const void* device, unsigned* count, ProcessV2* infos) {
  return running_processes(device, count, infos);
}
SIMGPU_API int nvmlDeviceGetComputeRunningProcesses_v3(const void* device, unsigned* count, ProcessV2* infos) {
  return running_processes(device, count, infos);
}

// There is no fabric between machines.
SIMGPU_API int nvmlDeviceGetGpuFabricInfoV(const void* device, FabricInfo* info) {
  if (!known(device) || !info) return kInvalidArgument;
  const unsigned version = info->version;
  *info = {};
  info->version = version;
  return kOk;
}

SIMGPU_API int nvmlDeviceGetNvLinkRemoteDeviceType(const void*, unsigned, int*) { return kUnsupported; }
SIMGPU_API int nvmlDeviceGetNvLinkRemotePciInfo_v2(const void*, unsigned, void*) { return kUnsupported; }
SIMGPU_API int nvmlDeviceGetUtilizationRates(const void*, void*) { return kUnsupported; }
SIMGPU_API int nvmlDeviceGetTemperature(const void*, int, unsigned*) { return kUnsupported; }
SIMGPU_API int nvmlDeviceGetPowerUsage(const void*, unsigned*) { return kUnsupported; }
SIMGPU_API int nvmlDeviceGetClockInfo(const void*, int, unsigned*) { return kUnsupported; }
