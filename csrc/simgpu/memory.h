// What the runtime's and the driver's memory calls share: allocation, release, and who owns a pointer.
// Unless a function says otherwise it takes no lock and expects it held.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simgpu/errors.h"

namespace poolalloc::simgpu {

struct Device;
struct HostBlock;
struct Region;
struct Stream;
class Pool;

// cudaMalloc and cudaFree on the current device.
Error device_malloc(std::uint64_t size, std::uint64_t* address);
Error device_free(std::uint64_t address, const char* caller);

Error host_malloc(std::uint64_t size, unsigned flags, void** pointer);
Error host_free(const void* pointer, const char* caller);
Error host_register(const void* pointer, std::uint64_t size, unsigned flags);
Error host_unregister(const void* pointer, const char* caller);
Error managed_malloc(std::uint64_t size, void** pointer);

Error malloc_async(std::uint64_t size, Pool& pool, Stream& stream, std::uint64_t* address);
Error free_async(std::uint64_t address, Stream& stream, const char* caller);

// Who owns an address: at most one of region and host is set. A reserved but unmapped address is unregistered.
struct PointerInfo {
  int type = 0;  // abi::MemoryType
  int device = -2;
  std::uint64_t base = 0;
  std::uint64_t size = 0;
  Region* region = nullptr;
  HostBlock* host = nullptr;
};
PointerInfo find_pointer(std::uint64_t address);

Error pointer_attribute(std::uint64_t address, int attribute, void* value);

}  // namespace poolalloc::simgpu
