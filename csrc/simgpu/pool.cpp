// Stream-ordered pools; see pool.h.
#include "simgpu/pool.h"

#include <algorithm>

#include "simgpu/cuda_abi.h"
#include "simgpu/driver_work.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

constexpr std::uint64_t kAlignment = 512;
constexpr std::uint64_t kSegment = 32 << 20;

}  // namespace

std::uint64_t Pool::allocate(std::uint64_t size) {
  const std::uint64_t rounded = round_up(std::max<std::uint64_t>(size, 1), kAlignment);
  auto hole = holes_by_size_.lower_bound({rounded, 0});
  if (hole == holes_by_size_.end()) {
    if (!grow(rounded)) return 0;
    hole = holes_by_size_.lower_bound({rounded, 0});
  }
  const auto [hole_size, base] = *hole;
  remove_hole(base, hole_size);
  if (hole_size > rounded) add_hole(base + rounded, hole_size - rounded);
  live_.emplace(base, Block{rounded, size});
  used_ += rounded;
  used_high_ = std::max(used_high_, used_);
  return base;
}

std::uint64_t Pool::start_of(std::uint64_t address) const {
  auto found = live_.upper_bound(address);
  if (found == live_.begin()) return 0;
  --found;
  return address - found->first < found->second.size ? found->first : 0;
}

void Pool::free(std::uint64_t address) {
  const auto found = live_.find(address);
  std::uint64_t start = address;
  std::uint64_t size = found->second.size;
  live_.erase(found);
  used_ -= size;
  const auto segment = std::prev(segments_.upper_bound(start));
  if (const auto next = holes_.find(start + size);
      next != holes_.end() && next->first < segment->first + segment->second) {
    size += next->second;
    remove_hole(next->first, next->second);
  }
  if (const auto next = holes_.lower_bound(start); next != holes_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == start && before->first >= segment->first) {
      start = before->first;
      size += before->second;
      remove_hole(before->first, before->second);
    }
  }
  add_hole(start, size);
}

bool Pool::grow(std::uint64_t size) {
  // A large segment that does not fit may still fit as a small one.
  for (const std::uint64_t segment : {round_up(std::max(size, kSegment), kGranularity), round_up(size, kGranularity)}) {
    Extent* extent = create_extent(device_, segment, true);
    if (!extent) continue;
    Region* region = sim().addresses.create(RegionKind::kPoolSegment, segment, kGranularity, device_.index);
    if (!region) {
      release_extent(*extent);
      return false;
    }
    region->pool = this;
    Mapping& mapping = map_extent(*region, region->base, *extent, segment, 0);
    release_extent(*extent);
    mapping.access[static_cast<std::size_t>(device_.index)] = abi::kAccessReadWrite;
    segments_.emplace(region->base, segment);
    note_work(Work::allocate_segment, 1, segment);
    reserved_ += segment;
    reserved_high_ = std::max(reserved_high_, reserved_);
    add_hole(region->base, segment);
    return true;
  }
  return false;
}

void Pool::add_hole(std::uint64_t base, std::uint64_t size) {
  holes_.emplace(base, size);
  holes_by_size_.emplace(size, base);
}

void Pool::remove_hole(std::uint64_t base, std::uint64_t size) {
  holes_.erase(base);
  holes_by_size_.erase({size, base});
}

void Pool::trim(std::uint64_t keep) {
  for (auto segment = segments_.begin(); segment != segments_.end() && reserved_ > keep;) {
    const auto [base, size] = *segment;
    const auto hole = holes_.find(base);
    if (hole == holes_.end() || hole->second != size || reserved_ - size < keep) {
      ++segment;
      continue;
    }
    remove_hole(base, size);
    note_work(Work::free_segment, 1, size);
    Region* region = sim().addresses.at(base);
    unmap_extent(*region, region->mappings.begin());
    sim().addresses.destroy(*region);
    reserved_ -= size;
    segment = segments_.erase(segment);
  }
}

Error Pool::get_attribute(int attribute, void* value) const {
  const auto put = [&](std::uint64_t bytes) {
    *static_cast<std::uint64_t*>(value) = bytes;
    return kSuccess;
  };
  switch (attribute) {
    case abi::kPoolReuseFollowEventDependencies:
    case abi::kPoolReuseAllowOpportunistic:
    case abi::kPoolReuseAllowInternalDependencies:
      *static_cast<int*>(value) = reuse_flags_[attribute - 1];
      return kSuccess;
    case abi::kPoolReleaseThreshold:
      return put(release_threshold_);
    case abi::kPoolReservedCurrent:
      return put(reserved_);
    case abi::kPoolReservedHigh:
      return put(reserved_high_);
    case abi::kPoolUsedCurrent:
      return put(used_);
    case abi::kPoolUsedHigh:
      return put(used_high_);
    default:
      return kInvalidValue;
  }
}

Error Pool::set_attribute(int attribute, const void* value) {
  const auto bytes = [&] { return *static_cast<const std::uint64_t*>(value); };
  switch (attribute) {
    case abi::kPoolReuseFollowEventDependencies:
    case abi::kPoolReuseAllowOpportunistic:
    case abi::kPoolReuseAllowInternalDependencies:
      reuse_flags_[attribute - 1] = *static_cast<const int*>(value);
      return kSuccess;
    case abi::kPoolReleaseThreshold:
      release_threshold_ = bytes();
      return kSuccess;
    // The high marks can only be reset to what is current, by writing zero.
    case abi::kPoolReservedHigh:
      if (bytes() != 0) return kInvalidValue;
      reserved_high_ = reserved_;
      return kSuccess;
    case abi::kPoolUsedHigh:
      if (bytes() != 0) return kInvalidValue;
      used_high_ = used_;
      return kSuccess;
    default:
      return kInvalidValue;
  }
}

void Pool::grant(int device, int flags) { access_[device] = flags; }

int Pool::access(int device) const {
  if (device == device_.index) return abi::kAccessReadWrite;
  const auto found = access_.find(device);
  return found == access_.end() ? abi::kAccessNone : found->second;
}

void trim_pools_of(Device& device) {
  sim().pools.for_each([&](Pool& pool) {
    if (&pool.device() == &device) pool.trim(0);
  });
}

void trim_pools_to_threshold(Device& device) {
  sim().pools.for_each([&](Pool& pool) {
    if (&pool.device() == &device) pool.trim_to_threshold();
  });
}

}  // namespace poolalloc::simgpu
