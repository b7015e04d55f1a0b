// Device addresses: one window of address space for all devices, the regions in it, and what is mapped where.
//
// A region is what one cudaMalloc, one cuMemAddressReserve, one pool segment or one imported allocation covers. It
// holds mappings (address -> part of an extent); for everything but a reservation there is exactly one. The window is
// reserved with no access: a host that follows a device address faults, as on a real machine, and copies go through the
// mappings. Addresses are given out in rotation, so that one just freed is not met again soon.
//
// Not here: the rules of the calls (device_memory.cpp, vmm.cpp). The simulator's lock guards everything.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <unordered_set>

#include "simgpu/config.h"
#include "simgpu/physical.h"

namespace poolalloc::simgpu {

class Pool;

enum class RegionKind { kMalloc, kReservation, kPoolSegment, kImport, kSymbol };

struct Mapping {
  Extent* extent;
  std::uint64_t size;
  std::uint64_t offset;                            // into the extent
  std::array<std::uint8_t, kMaxDevices> access{};  // abi::AccessFlags by device
};

struct Region {
  RegionKind kind;
  std::uint64_t base;
  std::uint64_t size;       // of addresses
  std::uint64_t requested;  // bytes the caller may touch; a reservation's is its size
  int device;
  std::map<std::uint64_t, Mapping> mappings;
  Pool* pool = nullptr;     // of a pool segment
  std::uint32_t opens = 1;  // of an import
};

class AddressSpace {
 public:
  AddressSpace();

  // True for any address of the window, live or not.
  bool contains(std::uint64_t address) const { return address - base_ < size_; }

  // A fresh region, at `hint` if that is free; null when the window is full.
  Region* create(RegionKind kind, std::uint64_t size, std::uint64_t alignment, int device, std::uint64_t hint = 0);
  // Ends a region that has no mappings left.
  void destroy(Region& region);

  // The region that begins at an address, or covers it.
  Region* at(std::uint64_t base);
  Region* covering(std::uint64_t address);

  // True if a region that began here was destroyed lately.
  bool was_freed(std::uint64_t base) const { return freed_.contains(base); }

  // The mapping under an address that some device may access, with its region and start; null if there is none.
  struct Place {
    Region* region = nullptr;
    std::uint64_t start = 0;
    Mapping* mapping = nullptr;
  };
  Place place_of(std::uint64_t address);

 private:
  std::uint64_t take(std::uint64_t size, std::uint64_t alignment, std::uint64_t hint);
  void occupy(std::map<std::uint64_t, std::uint64_t>::iterator hole, std::uint64_t base, std::uint64_t size);

  std::uint64_t base_ = 0;
  std::uint64_t size_ = 0;
  std::uint64_t next_ = 0;                        // where the rotation stands
  std::map<std::uint64_t, std::uint64_t> holes_;  // start -> end
  std::map<std::uint64_t, Region> regions_;       // base -> region
  std::unordered_set<std::uint64_t> freed_;       // bases of destroyed regions, the newest of them
  std::deque<std::uint64_t> freed_order_;
};

// Maps a part of an extent into a region, with no access yet; the mapping holds a reference to the extent.
Mapping& map_extent(Region& region, std::uint64_t address, Extent& extent, std::uint64_t size, std::uint64_t offset);
void unmap_extent(Region& region, std::map<std::uint64_t, Mapping>::iterator mapping);

}  // namespace poolalloc::simgpu
