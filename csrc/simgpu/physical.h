// Physical memory of the simulated devices: extents, what they cost, and the few bytes that a host really wrote.
//
// An extent is what one cudaMalloc, one cuMemCreate or one pool segment takes from a device. It lives while anything
// refers to it (handles, mappings) and is counted from the first to the last reference. Its contents exist only where
// copies or memsets wrote something: everything else reads as zeros and costs nothing.
//
// A launch forgets contents: a kernel may have written there, and what it would have written is not known. Otherwise a
// tensor that a kernel computed would show what another one left in the same place, and what a program does would hang
// on where its allocator puts things. POOLALLOC_SIM_KEEP_CONTENTS=1 turns that off, and
// memory that was exported to other processes keeps what was copied there.
//
// Not here: addresses (addresses.h). The simulator's lock guards everything.
#pragma once

#include <cstddef>
#include <cstdint>

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
  std::uint32_t references = 1;
  std::uint32_t handle_references = 0;
  std::uint64_t handle = 0;    // the live cuMemCreate handle, if any
  char* contents = nullptr;    // address space of `size` bytes, made at the first write
  std::uint64_t touched = 0;   // upper bound of the bytes of it that are resident
  std::uint64_t launches = 0;  // of the device, when contents were last written
  bool shared = false;         // contents are in a file that other processes map (shared_contents.h)
  std::uint64_t shared_position = 0;
};

// Takes `size` bytes (a multiple of kGranularity if counted) from a device; null when they are more than is free, even
// after its pools gave back what is idle. The caller owns one reference.
Extent* create_extent(Device& device, std::uint64_t size, bool counted);
void retain_extent(Extent& extent);
void release_extent(Extent& extent);

// Copies of contents; the range must lie inside the extent.
void write_extent(Extent& extent, std::uint64_t offset, const void* from, std::uint64_t size);
void read_extent(const Extent& extent, std::uint64_t offset, void* to, std::uint64_t size);
// False if the extent reads as zeros altogether.
bool has_contents(const Extent& extent);
// Makes a range read as zeros.
void clear_extent(Extent& extent, std::uint64_t offset, std::uint64_t size);

// Makes whole pages of private anonymous host memory read as zeros and cost nothing; clears the edges by writing.
void zero_host_pages(char* from, std::uint64_t size);

}  // namespace poolalloc::simgpu
