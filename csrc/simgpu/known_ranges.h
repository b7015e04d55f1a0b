// Which bytes of an extent have a known value: a set of disjoint ranges. Every other byte reads as zero.
//
// The simulator's lock guards everything.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

namespace poolalloc::simgpu {

class KnownRanges {
 public:
  bool empty() const { return ranges_.empty(); }
  void clear() { ranges_.clear(); }

  void add(std::uint64_t start, std::uint64_t end) {
    if (start >= end) return;
    auto next = ranges_.upper_bound(start);
    if (next != ranges_.begin()) {
      const auto before = std::prev(next);
      if (before->second >= start) {
        start = before->first;
        end = std::max(end, before->second);
        ranges_.erase(before);
      }
    }
    while (next != ranges_.end() && next->first <= end) {
      end = std::max(end, next->second);
      next = ranges_.erase(next);
    }
    ranges_.emplace_hint(next, start, end);
  }

  void remove(std::uint64_t start, std::uint64_t end) {
    if (start >= end) return;
    auto next = ranges_.lower_bound(start);
    if (next != ranges_.begin()) {
      const auto before = std::prev(next);
      const std::uint64_t before_end = before->second;
      if (before_end > start) before->second = start;
      if (before_end > end) ranges_.emplace_hint(next, end, before_end);
    }
    while (next != ranges_.end() && next->first < end) {
      const std::uint64_t next_end = next->second;
      next = ranges_.erase(next);
      if (next_end > end) ranges_.emplace_hint(next, end, next_end);
    }
  }

  bool covers(std::uint64_t start, std::uint64_t end) const {
    if (start >= end) return true;
    const auto next = ranges_.upper_bound(start);
    return next != ranges_.begin() && std::prev(next)->second >= end;
  }

  // Calls f(start, end) for each part of the given range that is known, in order.
  template <class F>
  void for_each_in(std::uint64_t start, std::uint64_t end, F&& f) const {
    auto next = ranges_.upper_bound(start);
    if (next != ranges_.begin()) --next;
    for (; next != ranges_.end() && next->first < end; ++next) {
      const std::uint64_t from = std::max(start, next->first);
      const std::uint64_t to = std::min(end, next->second);
      if (from < to) f(from, to);
    }
  }

 private:
  std::map<std::uint64_t, std::uint64_t> ranges_;  // start -> end; neither touching nor overlapping
};

}  // namespace poolalloc::simgpu
