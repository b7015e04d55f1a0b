// Blocks that grow: of one size, each of which replaces a live block of a slightly smaller size.
//
// An example is a decode step of a model whose key-value caches are concatenated: for every layer of a request it asks
// for a cache that is one token longer, copies, and frees the old one. If all new blocks of one size lie in one row,
// this rewriting compacts memory for nothing; if each goes to the lowest hole, old and new ones mix for ever.
//
//   sizes live   100 x 32     request 104: the growth of 100 -> a row with room for 32 blocks of 104
//                100 x 31, 104 x 1     the next 104 goes right behind the first
//
// A request is a candidate where enough blocks of the next smaller live size are there. It is believed once its size
// class has often been followed by the free of such a block, and less so each time it was not.
//
// Only watches sizes; arena.h places. Thresholds: docs/design/placement.md.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>

#include "core/base/size_class.h"
#include "core/base/types.h"

namespace poolalloc {

class Cohorts {
 public:
  // Before a block of `size` is placed. Returns the bytes that it and those to come need in one row; 0 if it is no
  // growth.
  Bytes row_for(Bytes size) {
    const auto own = sizes_.lower_bound(size);
    if (own == sizes_.begin()) return 0;
    auto smaller = std::prev(own);
    while (smaller->second.live == 0) {
      if (smaller == sizes_.begin() || smaller->first < least(size)) return 0;
      --smaller;
    }
    const bool begun = own != sizes_.end() && own->first == size && own->second.live != 0;
    if (smaller->first < least(size) || smaller->second.live + (begun ? kEnough : 0) < kEnough) return 0;
    if (awaited_ != 0) believe(-kMiss);
    awaited_ = smaller->first;
    awaited_since_ = clock_;
    awaited_class_ = hole_class(size);
    if (belief_[awaited_class_] < kTrust) return 0;
    last_growth_ = clock_;
    return size * smaller->second.live;
  }
  // Placed, or gone.
  void came(Bytes size, Bytes end) {
    ++clock_;
    Size& own = sizes_[size];
    ++own.live;
    own.last_end = end;
  }
  void left(Bytes size) {
    ++clock_;
    if (const auto own = sizes_.find(size); own != sizes_.end() && own->second.live != 0) --own->second.live;
    if (awaited_ == size && clock_ - awaited_since_ <= kSoon) {
      believe(+1);
      awaited_ = 0;
    }
  }
  // Where the last block of a size ended; 0 if there was none.
  Bytes last_end(Bytes size) const {
    const auto own = sizes_.find(size);
    return own != sizes_.end() ? own->second.last_end : 0;
  }
  // Whether growth was seen lately: then whatever else is placed keeps low.
  bool active() const { return last_growth_ != 0 && clock_ - last_growth_ < kLately; }
  // Forgets sizes of which no block is live.
  void shed() {
    std::erase_if(sizes_, [](const auto& each) { return each.second.live == 0; });
  }
  Bytes bytes() const { return sizes_.size() * (sizeof(std::pair<const Bytes, Size>) + 4 * sizeof(void*)); }

 private:
  static constexpr std::uint32_t kEnough = 8;  // live blocks of the smaller size
  static constexpr int kTrust = 24, kMiss = 64, kMost = 64;
  static constexpr std::uint64_t kSoon = 8, kLately = 20000;  // placements and frees

  struct Size {
    std::uint32_t live = 0;
    Bytes last_end = 0;
  };
  static Bytes least(Bytes size) { return size - size / 8; }
  void believe(int change) {
    int& belief = belief_[awaited_class_];
    belief = std::clamp(belief + change, 0, kMost);
  }

  std::map<Bytes, Size> sizes_;
  std::array<int, kHoleClasses> belief_{};
  std::uint64_t clock_ = 1;
  std::uint64_t last_growth_ = 0;
  Bytes awaited_ = 0;  // a block of this size should be freed
  std::uint64_t awaited_since_ = 0;
  int awaited_class_ = 0;
};

}  // namespace poolalloc
