// The plain types that every layer shares. Nothing here allocates, calls a device or knows of torch.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#error "poolalloc supports Linux"
#endif
#define POOLALLOC_API __attribute__((visibility("default")))

namespace poolalloc {

using Bytes = std::uint64_t;
using Address = std::uint64_t;   // of device memory; 0 is no address
using StreamId = std::uint64_t;  // a CUstream as an integer; 0 is the legacy default stream
using DeviceIndex = int;
using DeviceSet = std::uint64_t;  // bit by bit

// Placement granularity: every block starts and ends on a multiple of it. The same as torch's own allocator.
inline constexpr Bytes kGranularity = 512;
// The unit of physical memory. The granularity of cuMemCreate on every card to date.
inline constexpr Bytes kPageBytes = Bytes{2} << 20;

// A page of a heap's addresses.
using PageIndex = std::uint32_t;
inline constexpr PageIndex kNoPage = ~PageIndex{0};

// Streams of two devices may have the same handle, as the default streams have.
struct Stream {
  DeviceIndex device = 0;
  StreamId id = 0;
  friend bool operator==(const Stream&, const Stream&) = default;
};

inline constexpr Bytes round_up(Bytes value, Bytes multiple) { return (value + multiple - 1) / multiple * multiple; }

// A private pool, as torch names them (MempoolId_t). {0, 0} is the ordinary pool of a device.
struct PoolId {
  std::uint64_t first = 0;
  std::uint64_t second = 0;
  friend bool operator==(const PoolId&, const PoolId&) = default;
};

// A region: memory under one tag, which sleeps and wakes together (device/regions.h). 0: none.
using RegionId = std::uint32_t;

// The pool that has what threads allocate in a region outside of other pools. torch's own count from 0, and are told
// apart by `first` alone in its tables.
inline constexpr std::uint64_t kRegionPools = std::uint64_t{1} << 63;
inline constexpr PoolId pool_of(RegionId region) { return {kRegionPools | region, 0}; }
inline constexpr bool is_regions_own(PoolId pool) { return (pool.first & kRegionPools) != 0; }

// A block that cannot be handed out now, as a question about an address is answered.
struct BlockInfo {
  Address address = 0;
  Bytes rounded = 0;
  Bytes requested = 0;
  bool pending = false;         // freed, waiting for a stream
  bool used_elsewhere = false;  // by other streams: when it is freed it will be pending
  DeviceIndex device = 0;
  StreamId stream = 0;
  PoolId pool;
};

}  // namespace poolalloc
