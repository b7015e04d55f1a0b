// Size classes: which bin serves a request, and how large that bin's blocks are.
//
// Multiples of 512 B up to 8 KiB, then eight steps to each doubling (the class spacing of jemalloc and TLSF), so a
// block is at most 12.5 % larger than what was asked, about 5 % on average. Pure arithmetic for every size up to 2^40.
#pragma once

#include <bit>

#include "core/base/types.h"

namespace poolalloc {

inline constexpr Bytes kMaxBinnedBytes = Bytes{1} << 40;
inline constexpr int kBins = 232;         // bin_of(kMaxBinnedBytes) + 1
inline constexpr int kHoleClasses = 240;  // hole_class(kMaxBinnedBytes) + 1

// The bin of the smallest class that holds `bytes` (1 .. kMaxBinnedBytes).
inline constexpr int bin_of(Bytes bytes) {
  const Bytes last = (bytes - 1) / kGranularity;  // index of the last granule
  const int width = std::bit_width(last);
  const int shift = width > 4 ? width - 4 : 0;
  return shift * 8 + static_cast<int>(last >> shift);
}

// The size of the blocks of a bin. bin_bytes(bin_of(n)) >= n, and bin_of(bin_bytes(b)) == b.
inline constexpr Bytes bin_bytes(int bin) {
  const int shift = bin < 16 ? 0 : bin / 8 - 1;
  const Bytes granules = static_cast<Bytes>(bin - shift * 8) + 1;
  return (granules << shift) * kGranularity;
}

// Classes of holes round the other way: every hole in a class above that of n is larger than n. The last class has no
// end: merged holes may be larger than any block.
inline constexpr int hole_class(Bytes bytes) {
  const Bytes granules = bytes / kGranularity;
  const int width = std::bit_width(granules);
  const int shift = width > 4 ? width - 4 : 0;
  const int own = shift * 8 + static_cast<int>(granules >> shift);
  return own < kHoleClasses ? own : kHoleClasses - 1;
}

static_assert(bin_of(1) == 0 && bin_of(512) == 0 && bin_of(513) == 1);
static_assert(bin_of(8192) == 15 && bin_bytes(15) == 8192 && bin_of(8193) == 16 && bin_bytes(16) == 9216);
static_assert(bin_of(kMaxBinnedBytes) == kBins - 1 && bin_bytes(kBins - 1) == kMaxBinnedBytes);
static_assert(hole_class(kMaxBinnedBytes) < kHoleClasses - 1);

}  // namespace poolalloc
