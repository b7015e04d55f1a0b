// A stream-ordered memory pool (cudaMallocAsync): segments of physical memory, best fit inside them.
//
// Memory freed to a pool can be used again at once, on any stream: the simulated device orders what needs ordering.
// Segments that became empty go back to the device at the next synchronize, down to the release threshold, when the
// device runs out, or in trim().
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <utility>

#include "simgpu/errors.h"

namespace poolalloc::simgpu {

struct Device;
struct Region;

class Pool {
 public:
  explicit Pool(Device& device) : device_(device) {}

  // An address for `size` bytes, or 0 when the device is full.
  std::uint64_t allocate(std::uint64_t size);
  bool owns(std::uint64_t address) const { return live_.contains(address); }
  // Bytes asked for by a live allocation.
  std::uint64_t size_of(std::uint64_t address) const { return live_.at(address).requested; }
  // Where the live allocation that covers an address begins; 0 if none does.
  std::uint64_t start_of(std::uint64_t address) const;
  void free(std::uint64_t address);

  // Gives back empty segments while more than `keep` bytes are held.
  void trim(std::uint64_t keep);
  void trim_to_threshold() { trim(release_threshold_); }

  Error get_attribute(int attribute, void* value) const;
  Error set_attribute(int attribute, const void* value);

  Device& device() const { return device_; }
  std::uint64_t handle() const { return handle_; }
  void set_handle(std::uint64_t handle) { handle_ = handle; }
  bool has_live() const { return !live_.empty(); }
  void grant(int device, int flags);
  int access(int device) const;

 private:
  struct Block {
    std::uint64_t size;
    std::uint64_t requested;
  };
  bool grow(std::uint64_t size);
  void add_hole(std::uint64_t base, std::uint64_t size);
  void remove_hole(std::uint64_t base, std::uint64_t size);

  Device& device_;
  std::uint64_t handle_ = 0;
  std::uint64_t release_threshold_ = 0;
  int reuse_flags_[3] = {1, 1, 1};
  std::uint64_t reserved_ = 0, reserved_high_ = 0;                   // reserved = sum of the segments = used + holes
  std::uint64_t used_ = 0, used_high_ = 0;                           // used = sum of the live blocks
  std::map<std::uint64_t, std::uint64_t> segments_;                  // base -> size
  std::map<std::uint64_t, std::uint64_t> holes_;                     // base -> size, never across segments
  std::set<std::pair<std::uint64_t, std::uint64_t>> holes_by_size_;  // the same, by (size, base)
  std::map<std::uint64_t, Block> live_;
  std::map<int, int> access_;  // of other devices
};

// Gives back every idle byte of every pool of a device.
void trim_pools_of(Device& device);
// What a synchronize does: pools go down to their thresholds.
void trim_pools_to_threshold(Device& device);

}  // namespace poolalloc::simgpu
