// Records of one kind, taken and given back in any order. Their memory comes in chunks, so that pointers to records
// stay; chunks in which no record is in use go back when asked. Guarded by the owner's lock.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "core/base/types.h"

namespace poolalloc {

// Records that are not in use are linked through `kLink`.
template <typename Record, Record* Record::* kLink, std::size_t kChunk>
class RecordPool {
 public:
  // As its last user left it, but for the link.
  Record* take() {
    if (unused_ == nullptr) [[unlikely]]
      grow();
    Record* record = unused_;
    unused_ = record->*kLink;
    return record;
  }
  void give(Record* record) {
    record->*kLink = unused_;
    unused_ = record;
  }
  Bytes bytes() const { return chunks_.size() * kChunk * sizeof(Record); }

  // A walk through all records that are not in use.
  void shed() {
    const auto by_address = [](const auto& a, const auto& b) { return std::less<>()(a.get(), b.get()); };
    std::sort(chunks_.begin(), chunks_.end(), by_address);
    std::vector<std::size_t> unused(chunks_.size());
    for (const Record* record = unused_; record != nullptr; record = record->*kLink) ++unused[chunk_of(record)];
    for (Record** link = &unused_; *link != nullptr;) {
      if (unused[chunk_of(*link)] == kChunk)
        *link = (*link)->*kLink;
      else
        link = &((*link)->*kLink);
    }
    std::size_t kept = 0;
    for (std::size_t i = 0; i < unused.size(); ++i)
      if (unused[i] != kChunk) std::swap(chunks_[kept++], chunks_[i]);
    chunks_.resize(kept);
    chunks_.shrink_to_fit();
  }

 private:
  [[gnu::noinline]] void grow() {
    chunks_.emplace_back(new Record[kChunk]);
    for (std::size_t i = kChunk; i-- > 0;) give(&chunks_.back()[i]);
  }
  // While they are sorted.
  std::size_t chunk_of(const Record* record) const {
    const auto after =
        std::upper_bound(chunks_.begin(), chunks_.end(), record, [](const Record* each, const auto& chunk) {
          return std::less<>()(each, static_cast<const Record*>(chunk.get()));
        });
    return static_cast<std::size_t>(after - chunks_.begin()) - 1;
  }

  std::vector<std::unique_ptr<Record[]>> chunks_;
  Record* unused_ = nullptr;
};

}  // namespace poolalloc
