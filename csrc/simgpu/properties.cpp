// Properties and attributes of the simulated card; see properties.h. What gpus.def does not say is what every card
// since Volta has in common (limits of grids, blocks, textures).
#include "simgpu/properties.h"

#include <cstdio>
#include <cstring>

#include "simgpu/cuda_abi.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

constexpr int kFirstBus = 0x1a;
constexpr int kLastAttribute = 160;
constexpr int kReservedSharedPerBlock = 1024;

// A third of the second-level cache may be set aside, and not before Ampere.
int persisting_l2(const Card& card) { return card.major >= 8 ? card.l2_bytes / 3 * 2 : 0; }

}  // namespace

Error device_attribute(const Device& device, int attribute, int* value) {
  const Card& card = *sim().config.card;
  const auto put = [&](int result) {
    *value = result;
    return kSuccess;
  };
  switch (attribute) {
    case 1:  // threads per block
      return put(1024);
    case 2:  // block dimensions
    case 3:
      return put(1024);
    case 4:
      return put(64);
    case 5:  // grid dimensions
      return put(2147483647);
    case 6:
    case 7:
      return put(65535);
    case 8:
      return put(card.shared_per_block);
    case 9:  // constant memory
      return put(65536);
    case 10:  // warp
      return put(32);
    case 11:  // pitch
      return put(2147483647);
    case 12:  // registers per block
      return put(65536);
    case 13:
      return put(card.clock_khz);
    case 14:  // texture alignment
      return put(512);
    case 15:  // overlap of copies and kernels
      return put(1);
    case 16:
      return put(card.sm_count);
    case 19:  // host memory can be mapped
      return put(1);
    case 21:  // textures
      return put(131072);
    case 22:
      return put(131072);
    case 23:
      return put(65536);
    case 24:
    case 25:
    case 26:
      return put(16384);
    case 30:  // surface alignment
      return put(512);
    case 31:  // concurrent kernels
      return put(1);
    case 33:
      return put(pci_bus(device.physical_index));
    case 36:
      return put(card.memory_clock_khz);
    case 37:
      return put(card.bus_bits);
    case 38:
      return put(card.l2_bytes);
    case 39:
      return put(card.max_threads_per_sm);
    case 40:  // copy engines
      return put(3);
    case 41:  // unified addressing
      return put(1);
    case 51:  // pitch alignment of textures
      return put(32);
    case 69:  // linear textures
      return put(268435456);
    case 75:
      return put(card.major);
    case 76:
      return put(card.minor);
    case 78:  // stream priorities
    case 79:  // first-level caches
    case 80:
      return put(1);
    case 81:
      return put(card.shared_per_sm);
    case 82:
      return put(card.registers_per_sm);
    case 83:  // managed memory
      return put(1);
    case 87:  // single to double precision
      return put(card.minor == 0 && card.major < 12 ? 2 : 64);
    case 89:  // concurrent managed access, compute preemption, registered memory by its host pointer
    case 90:
    case 91:
      return put(1);
    case 92:  // stream memory operations
    case 93:
    case 94:
      return put(1);
    case 95:  // cooperative launch
      return put(1);
    case 97:
      return put(card.shared_per_block_optin);
    case 99:  // host memory can be registered
      return put(1);
    case 102:  // virtual memory management
    case 103:  // its handles as file descriptors
    case 110:  // memory of it for network cards
      return put(sim().config.virtual_memory ? 1 : 0);
    case 106:
      return put(card.max_blocks_per_sm);
    case 108:
      return put(persisting_l2(card));
    case 109:
      return put(card.major >= 8 ? 134213632 : 0);
    case 111:
      return put(card.major >= 8 ? kReservedSharedPerBlock : 0);
    case 115:  // memory pools
      return put(1);
    case 119:  // handle types of pools
      return put(abi::kHandleNone);
    case 120:  // clusters
      return put(card.major >= 9 ? 1 : 0);
    case 122:
    case 123:
      return put(1);
    case 125:  // events of other processes
      return put(1);
    case 126:
      return put(card.major >= 9 ? 4 : 1);
    default:
      if (attribute < 1 || attribute > kLastAttribute) return kInvalidValue;
      return put(0);
  }
}

int pci_bus(int physical_index) { return kFirstBus + physical_index; }

std::string pci_bus_id(int physical_index) {
  char text[24];
  std::snprintf(text, sizeof text, "0000:%02x:00.0", pci_bus(physical_index));
  return text;
}

void fill_uuid(int physical_index, char (&uuid)[16]) {
  std::memcpy(uuid, "poolalloc-simgp", 15);
  uuid[15] = static_cast<char>(physical_index);
}

std::string uuid_text(int physical_index) {
  char uuid[16];
  fill_uuid(physical_index, uuid);
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    char digits[4];
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned>(static_cast<unsigned char>(uuid[i])));
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += digits;
  }
  return text;
}

template <class Properties>
void fill_properties(const Device& device, Properties& properties) {
  const Card& card = *sim().config.card;
  const auto attribute = [&](int number) {
    int value = 0;
    device_attribute(device, number, &value);
    return value;
  };
  properties = {};
  std::snprintf(properties.name, sizeof properties.name, "%s", card.name);
  fill_uuid(device.physical_index, properties.uuid);
  properties.totalGlobalMem = device.capacity;
  properties.sharedMemPerBlock = static_cast<std::size_t>(card.shared_per_block);
  properties.regsPerBlock = attribute(12);
  properties.warpSize = attribute(10);
  properties.memPitch = static_cast<std::size_t>(attribute(11));
  properties.maxThreadsPerBlock = attribute(1);
  for (int i = 0; i < 3; ++i) {
    properties.maxThreadsDim[i] = attribute(2 + i);
    properties.maxGridSize[i] = attribute(5 + i);
    properties.maxTexture3D[i] = attribute(24 + i);
  }
  properties.totalConstMem = static_cast<std::size_t>(attribute(9));
  properties.major = card.major;
  properties.minor = card.minor;
  properties.textureAlignment = static_cast<std::size_t>(attribute(14));
  properties.texturePitchAlignment = static_cast<std::size_t>(attribute(51));
  properties.multiProcessorCount = card.sm_count;
  properties.canMapHostMemory = attribute(19);
  properties.maxTexture1D = attribute(21);
  properties.maxTexture2D[0] = attribute(22);
  properties.maxTexture2D[1] = attribute(23);
  properties.surfaceAlignment = static_cast<std::size_t>(attribute(30));
  properties.concurrentKernels = attribute(31);
  properties.pciBusID = attribute(33);
  properties.asyncEngineCount = attribute(40);
  properties.unifiedAddressing = attribute(41);
  properties.memoryBusWidth = card.bus_bits;
  properties.l2CacheSize = card.l2_bytes;
  properties.persistingL2CacheMaxSize = attribute(108);
  properties.maxThreadsPerMultiProcessor = card.max_threads_per_sm;
  properties.streamPrioritiesSupported = attribute(78);
  properties.globalL1CacheSupported = attribute(79);
  properties.localL1CacheSupported = attribute(80);
  properties.sharedMemPerMultiprocessor = static_cast<std::size_t>(card.shared_per_sm);
  properties.regsPerMultiprocessor = card.registers_per_sm;
  properties.managedMemory = attribute(83);
  properties.multiGpuBoardGroupID = device.physical_index;
  properties.concurrentManagedAccess = attribute(89);
  properties.computePreemptionSupported = attribute(90);
  properties.canUseHostPointerForRegisteredMem = attribute(91);
  properties.cooperativeLaunch = attribute(95);
  properties.sharedMemPerBlockOptin = static_cast<std::size_t>(card.shared_per_block_optin);
  properties.maxBlocksPerMultiProcessor = card.max_blocks_per_sm;
  properties.accessPolicyMaxWindowSize = attribute(109);
  properties.reservedSharedMemPerBlock = static_cast<std::size_t>(attribute(111));
  properties.hostRegisterSupported = attribute(99);
  properties.memoryPoolsSupported = attribute(115);
  properties.ipcEventSupported = attribute(125);
  properties.clusterLaunch = attribute(120);
  if constexpr (requires { properties.clockRate; }) {
    properties.clockRate = card.clock_khz;
    properties.memoryClockRate = card.memory_clock_khz;
    properties.deviceOverlap = attribute(15);
    properties.singleToDoublePrecisionPerfRatio = attribute(87);
    properties.maxTexture1DLinear = attribute(69);
  }
  if constexpr (requires { properties.hostNumaId; }) {
    properties.deviceNumaId = -1;
    properties.hostNumaId = 0;
  }
}

template void fill_properties(const Device&, abi::DeviceProp12&);
template void fill_properties(const Device&, abi::DeviceProp13&);

}  // namespace poolalloc::simgpu
