// Page-locked, registered and managed host memory: what is live and where.
//
// All of it is ordinary memory of the process. Managed memory is not counted against a device: on a real one it moves.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_set>

#include "simgpu/errors.h"

namespace poolalloc::simgpu {

enum class HostKind { kPinned, kRegistered, kManaged };

struct HostBlock {
  HostKind kind;
  std::uint64_t base;
  std::uint64_t size;
  unsigned flags;
  int device;
};

class HostMemory {
 public:
  // Fresh zeroed memory, or null.
  void* allocate(HostKind kind, std::uint64_t size, unsigned flags, int device);
  // Ends a block of the given kind that begins here.
  Error release(HostKind kind, std::uint64_t base);
  Error enlist(std::uint64_t base, std::uint64_t size, unsigned flags, int device);

  // The block that covers an address, or null.
  HostBlock* covering(std::uint64_t address);
  bool was_freed(std::uint64_t base) const { return freed_.contains(base); }

 private:
  std::map<std::uint64_t, HostBlock> blocks_;
  std::unordered_set<std::uint64_t> freed_;
};

}  // namespace poolalloc::simgpu
