// Physical memory of the simulated devices: extents, what they cost, and the few bytes that a host really wrote.
//
// An extent is what one cudaMalloc, one cuMemCreate or one pool segment takes from a device. It lives while anything
// refers to it (handles, mappings) and is counted from the first to the last reference. Its contents exist only where
// copies, memsets or carried-out operations wrote something; every other byte is unknown, reads as zero and costs
// nothing (known_ranges.h).
//
// A launch outside an operation (operation.h) makes everything on its device unknown, since the kernel may have written
// anywhere. Otherwise a tensor that a kernel computed would show what another one left in the same place, and what a
// program does would hang on where its allocator puts things. POOLALLOC_SIM_KEEP_CONTENTS=1 turns that off. Memory that
// was exported to other processes keeps what was copied there, and counts as known.
//
// Not here: addresses (addresses.h). The simulator's lock guards everything.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simgpu/known_ranges.h"
#include "simgpu/uses.h"

namespace poolalloc::simgpu {

struct Device;

inline constexpr std::uint64_t kGranularity = 2 << 20;

constexpr std::uint64_t round_up(std::uint64_t bytes, std::uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Extent {
  Device* device;
  std::uint64_t size;
  bool counted;          // false for memory that belongs to another process or to a module
  std::uint64_t id;      // unique in the process
  int handle_types = 0;  // what cuMemCreate was asked to export
  bool rdma = false;     // cuMemCreate was asked for memory that network cards can reach
  std::uint32_t references = 1;
  std::uint32_t handle_references = 0;
  std::uint64_t handle = 0;   // the live cuMemCreate handle, if any
  char* contents = nullptr;   // address space of `size` bytes, made at the first write
  std::uint64_t touched = 0;  // upper bound of the bytes of it that are resident
  KnownRanges known{};        // valid while the device's count of forgettings is the one below
  std::uint64_t forgettings = 0;
  Uses uses{};          // by work that may not have completed
  bool shared = false;  // contents are in a file that other processes map (shared_contents.h)
  std::uint64_t shared_position = 0;
};

// What is used of a device and what is free, by this process or by all that share it (shared_card.h).
std::uint64_t used_bytes(const Device& device);
std::uint64_t free_bytes(const Device& device);

// Takes `size` bytes (a multiple of kGranularity if counted) from a device; null when they are more than is free, even
// after its pools gave back what is idle. The caller owns one reference.
Extent* create_extent(Device& device, std::uint64_t size, bool counted);
void retain_extent(Extent& extent);
void release_extent(Extent& extent);

// For all of these the range must lie inside the extent.
// Writes bytes, which are known from then on.
void write_extent(Extent& extent, std::uint64_t offset, const void* from, std::uint64_t size);
// Reads bytes; those that are not known are zero.
void read_extent(const Extent& extent, std::uint64_t offset, void* to, std::uint64_t size);
// Makes a range zero, and known to be so.
void zero_extent(Extent& extent, std::uint64_t offset, std::uint64_t size);
// Makes a range unknown. What other processes see stays as it is.
void forget_extent(Extent& extent, std::uint64_t offset, std::uint64_t size);
// True if every byte of a range is known.
bool is_known(const Extent& extent, std::uint64_t offset, std::uint64_t size);
// Calls f(start, end) for each known part of a range.
template <class F>
void for_each_known(const Extent& extent, std::uint64_t offset, std::uint64_t size, F&& f);
// False if nothing in the extent is known.
bool has_contents(const Extent& extent);

// Makes whole pages of private anonymous host memory read as zeros and cost nothing; clears the edges by writing.
void zero_host_pages(char* from, std::uint64_t size);

template <class F>
void for_each_known(const Extent& extent, std::uint64_t offset, std::uint64_t size, F&& f) {
  if (extent.shared) {
    f(offset, offset + size);
  } else if (has_contents(extent)) {
    extent.known.for_each_in(offset, offset + size, f);
  }
}

}  // namespace poolalloc::simgpu
