// The window of device addresses; see addresses.h.
#include "simgpu/addresses.h"

#include <sys/mman.h>

#include <algorithm>

namespace poolalloc::simgpu {
namespace {

constexpr std::uint64_t kLargestWindow = 64ull << 40;
constexpr std::uint64_t kSmallestWindow = 64ull << 30;
constexpr std::size_t kRememberedFrees = 1 << 16;

}  // namespace

AddressSpace::AddressSpace() {
  // A limit on address space (ulimit -v) makes the window smaller, not the program fail.
  for (std::uint64_t size = kLargestWindow; size >= kSmallestWindow; size /= 2) {
    void* memory = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) continue;
    madvise(memory, size, MADV_DONTDUMP);
    base_ = round_up(reinterpret_cast<std::uint64_t>(memory), kGranularity);
    size_ = size - kGranularity;
    next_ = base_;
    holes_.emplace(base_, base_ + size_);
    return;
  }
}

Region* AddressSpace::create(RegionKind kind, std::uint64_t size, std::uint64_t alignment, int device,
                             std::uint64_t hint) {
  const std::uint64_t span = round_up(size, kGranularity);
  const std::uint64_t base = take(span, std::max(alignment, kGranularity), hint);
  if (base == 0) return nullptr;
  freed_.erase(base);
  return &regions_
              .emplace(
                  base,
                  Region{.kind = kind, .base = base, .size = span, .requested = size, .device = device, .mappings = {}})
              .first->second;
}

std::uint64_t AddressSpace::take(std::uint64_t size, std::uint64_t alignment, std::uint64_t hint) {
  const auto fits = [&](std::map<std::uint64_t, std::uint64_t>::iterator hole, std::uint64_t from) -> std::uint64_t {
    const std::uint64_t base = round_up(std::max(hole->first, from), alignment);
    return base < hole->second && hole->second - base >= size ? base : 0;
  };
  if (hint != 0 && hint % alignment == 0 && contains(hint)) {
    auto hole = holes_.upper_bound(hint);
    if (hole != holes_.begin() && fits(--hole, hint) == hint) {
      occupy(hole, hint, size);
      return hint;
    }
  }
  // From where the rotation stands to the end, then once more from the start.
  for (const std::uint64_t from : {next_, base_}) {
    auto hole = holes_.upper_bound(from);
    if (hole != holes_.begin()) --hole;
    for (; hole != holes_.end(); ++hole) {
      if (const std::uint64_t base = fits(hole, from)) {
        occupy(hole, base, size);
        next_ = base + size;
        return base;
      }
    }
  }
  return 0;
}

void AddressSpace::occupy(std::map<std::uint64_t, std::uint64_t>::iterator hole, std::uint64_t base,
                          std::uint64_t size) {
  const auto [start, end] = *hole;
  holes_.erase(hole);
  if (start < base) holes_.emplace(start, base);
  if (base + size < end) holes_.emplace(base + size, end);
}

void AddressSpace::destroy(Region& region) {
  const std::uint64_t base = region.base;
  std::uint64_t start = base;
  std::uint64_t end = base + region.size;
  regions_.erase(base);
  auto after = holes_.lower_bound(start);
  if (after != holes_.end() && after->first == end) {
    end = after->second;
    after = holes_.erase(after);
  }
  if (after != holes_.begin()) {
    const auto before = std::prev(after);
    if (before->second == start) {
      start = before->first;
      holes_.erase(before);
    }
  }
  holes_.emplace(start, end);
  if (freed_.insert(base).second) freed_order_.push_back(base);
  if (freed_order_.size() > kRememberedFrees) {
    freed_.erase(freed_order_.front());
    freed_order_.pop_front();
  }
}

Region* AddressSpace::at(std::uint64_t base) {
  const auto found = regions_.find(base);
  return found == regions_.end() ? nullptr : &found->second;
}

Region* AddressSpace::covering(std::uint64_t address) {
  auto found = regions_.upper_bound(address);
  if (found == regions_.begin()) return nullptr;
  --found;
  return address - found->first < found->second.size ? &found->second : nullptr;
}

AddressSpace::Place AddressSpace::place_of(std::uint64_t address) {
  Region* region = covering(address);
  if (!region) return {};
  auto found = region->mappings.upper_bound(address);
  if (found == region->mappings.begin()) return {};
  --found;
  if (address - found->first >= found->second.size) return {};
  const auto& access = found->second.access;
  if (std::none_of(access.begin(), access.end(), [](std::uint8_t flags) { return flags != 0; })) return {};
  return {region, found->first, &found->second};
}

Mapping& map_extent(Region& region, std::uint64_t address, Extent& extent, std::uint64_t size, std::uint64_t offset) {
  retain_extent(extent);
  return region.mappings.emplace(address, Mapping{.extent = &extent, .size = size, .offset = offset}).first->second;
}

void unmap_extent(Region& region, std::map<std::uint64_t, Mapping>::iterator mapping) {
  release_extent(*mapping->second.extent);
  region.mappings.erase(mapping);
}

}  // namespace poolalloc::simgpu
