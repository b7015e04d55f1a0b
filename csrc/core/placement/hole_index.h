// The holes of an arena by size and address: the smallest that is large enough, and from each the next larger one.
//
// Source: two-level segregated fit (Masmano and others, TLSF, 2004), with an ordered tree for the list of a class, so
// that finding the best fit takes O(log n) however many holes are of one class; nearly always it has one or two. All
// holes are linked in order besides, since a placement compares several.
//
// Block supplies `Bytes offset, size`, `Block *left, *right, *smaller, *larger` and `std::uint32_t priority`.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "core/base/ordered_tree.h"
#include "core/base/size_class.h"
#include "core/base/types.h"

namespace poolalloc {

template <typename Block>
class HoleIndex {
 public:
  // Or null. From there on by Block::larger.
  Block* at_least(Bytes size) const {
    if (largest_ == nullptr || largest_->size < size) return nullptr;
    const int own = hole_class(size);
    if (Block* hole = holes_[own].first_that([size](const Block& each) { return each.size >= size; })) return hole;
    return smallest_above(own);  // any hole of a higher class is large enough
  }

  // Or null. From there on by Block::smaller.
  Block* largest() const { return largest_; }

  void insert(Block* hole) {
    const int own = hole_class(hole->size);
    Block* larger = holes_[own].after(*hole);
    if (larger == nullptr) larger = smallest_above(own);
    hole->larger = larger;
    hole->smaller = larger != nullptr ? larger->smaller : largest_;
    if (hole->smaller != nullptr) hole->smaller->larger = hole;
    (larger != nullptr ? larger->smaller : largest_) = hole;
    hole->priority = tree_priority(hole->offset);
    holes_[own].insert(hole);
    classes_[own / 64] |= std::uint64_t{1} << (own % 64);
    ++count_;
  }

  void remove(Block* hole) {
    const int own = hole_class(hole->size);
    if (hole->smaller != nullptr) hole->smaller->larger = hole->larger;
    (hole->larger != nullptr ? hole->larger->smaller : largest_) = hole->smaller;
    holes_[own].remove(hole);
    if (holes_[own].empty()) classes_[own / 64] &= ~(std::uint64_t{1} << (own % 64));
    --count_;
  }

  std::uint64_t count() const { return count_; }

  // Whether order, links and marks agree.
  bool valid() const {
    std::uint64_t in_trees = 0, in_list = 0;
    for (int own = 0; own < kHoleClasses; ++own) {
      const bool marked = (classes_[own / 64] >> (own % 64)) & 1;
      if (marked == holes_[own].empty() || !holes_[own].valid(&in_trees)) return false;
    }
    const Block* larger = nullptr;
    for (const Block* hole = largest_; hole != nullptr; larger = hole, hole = hole->smaller, ++in_list)
      if (hole->larger != larger || (larger != nullptr && !Order::less(*hole, *larger))) return false;
    return in_trees == count_ && in_list == count_;
  }

 private:
  struct Order {
    static bool less(const Block& a, const Block& b) {
      return a.size != b.size ? a.size < b.size : a.offset < b.offset;
    }
  };
  static constexpr int kWords = (kHoleClasses + 63) / 64;

  Block* smallest_above(int own) const {
    int word = (own + 1) / 64;
    if (word == kWords) return nullptr;
    std::uint64_t bits = classes_[word] & ~std::uint64_t{0} << (own + 1) % 64;
    while (bits == 0) {
      if (++word == kWords) return nullptr;
      bits = classes_[word];
    }
    return holes_[word * 64 + std::countr_zero(bits)].first();
  }

  std::array<OrderedTree<Block, Order>, kHoleClasses> holes_;
  std::array<std::uint64_t, kWords> classes_{};  // bit set: the class has a hole
  Block* largest_ = nullptr;
  std::uint64_t count_ = 0;
};

}  // namespace poolalloc
