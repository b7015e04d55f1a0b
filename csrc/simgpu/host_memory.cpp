// Host memory that CUDA knows; see host_memory.h.
#include "simgpu/host_memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "simgpu/physical.h"

namespace poolalloc::simgpu {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::size_t kRememberedFrees = 1 << 16;

}  // namespace

void* HostMemory::allocate(HostKind kind, std::uint64_t size, unsigned flags, int device) {
  const std::uint64_t span = round_up(std::max<std::uint64_t>(size, 1), kPage);
  void* memory = mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  const auto base = reinterpret_cast<std::uint64_t>(memory);
  blocks_.emplace(base, HostBlock{kind, base, size, flags, device});
  freed_.erase(base);
  return memory;
}

Error HostMemory::release(HostKind kind, std::uint64_t base) {
  const auto found = blocks_.find(base);
  if (found == blocks_.end() || found->second.kind != kind) {
    return kind == HostKind::kRegistered ? kHostNotRegistered : kInvalidValue;
  }
  if (kind != HostKind::kRegistered) {
    munmap(reinterpret_cast<void*>(base), round_up(std::max<std::uint64_t>(found->second.size, 1), kPage));
    if (freed_.size() >= kRememberedFrees) freed_.clear();
    freed_.insert(base);
  }
  blocks_.erase(found);
  return kSuccess;
}

Error HostMemory::enlist(std::uint64_t base, std::uint64_t size, unsigned flags, int device) {
  if (base == 0 || size == 0) return kInvalidValue;
  const auto next = blocks_.lower_bound(base);
  if ((next != blocks_.end() && next->first < base + size) || covering(base)) return kHostAlreadyRegistered;
  blocks_.emplace(base, HostBlock{HostKind::kRegistered, base, size, flags, device});
  return kSuccess;
}

HostBlock* HostMemory::covering(std::uint64_t address) {
  auto found = blocks_.upper_bound(address);
  if (found == blocks_.begin()) return nullptr;
  --found;
  return address - found->first < std::max<std::uint64_t>(found->second.size, 1) ? &found->second : nullptr;
}

}  // namespace poolalloc::simgpu
