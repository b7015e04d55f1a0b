// Which heap owns an address: one load from a flat table over the address space, a slot for every 4 GiB.
// Ranges reserved for heaps are aligned to 4 GiB, so a slot has one owner. Segments are wherever the driver puts them:
// a slot with segments in it leads to a table of its 2 MiB pages, each of which knows its number in its heap's range.
// Reading needs no lock.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "core/backing/page_table.h"
#include "core/base/errors.h"
#include "core/base/types.h"

namespace poolalloc {

class Heap;

class AddressTable {
 public:
  static constexpr int kSlotBits = 32;
  static constexpr Bytes kSlotBytes = Bytes{1} << kSlotBits;
  static constexpr int kAddressBits = 48;
  static constexpr const char* kBeyond = "device address beyond 48 bits";

  Heap* find(Address address) const {
    const std::uint64_t slot = address >> kSlotBits;
    if (slot >= kSlots) return nullptr;
    char* const entry = slots_[slot].load(std::memory_order_acquire);
    if (has_pages(entry)) [[unlikely]]
      return pages_of(entry)[index_of(address)].owner.load(std::memory_order_acquire);
    return reinterpret_cast<Heap*>(entry);
  }

  // Others cannot be entered.
  static bool covers(Address base, Bytes bytes) { return (base + bytes - 1) >> kAddressBits == 0; }

  // `base` is a multiple of kSlotBytes; the owner is null to forget a range.
  void set(Address base, Bytes bytes, Heap* owner) {
    check(base, bytes);
    for (Address address = base; address < base + bytes; address += kSlotBytes)
      slots_[address >> kSlotBits].store(reinterpret_cast<char*>(owner), std::memory_order_release);
    ranges_ += owner != nullptr ? 1 : -1;
  }
  std::uint64_t ranges() const { return ranges_.load(std::memory_order_relaxed); }

  // --- segments -----------------------------------------------------------------------------------------------------

  // Memory at `start` backs pages first .. first + count - 1 of the owner's range; the owner is null to forget it.
  void set_pages(Address start, PageIndex first, Bytes count, Heap* owner);
  // Which page of the range of `owner` lies at an address; kNoPage if none does.
  PageIndex page_at(Address address, const Heap* owner) const;

 private:
  struct Page {
    std::atomic<Heap*> owner{nullptr};
    std::atomic<PageIndex> page{kNoPage};
  };

  static constexpr std::uint64_t kSlots = std::uint64_t{1} << (kAddressBits - kSlotBits);
  static constexpr std::size_t kPagesOfSlot = kSlotBytes / kPageBytes;

  // A slot holds the address of its heap, or one more than that of its table of pages.
  static bool has_pages(char* entry) { return (reinterpret_cast<std::uintptr_t>(entry) & 1) != 0; }
  static Page* pages_of(char* entry) { return reinterpret_cast<Page*>(entry - 1); }
  static std::size_t index_of(Address address) { return address % kSlotBytes / kPageBytes; }
  static void check(Address base, Bytes bytes) {
    if (!covers(base, bytes)) throw DriverError(kBeyond);
  }

  std::unique_ptr<std::atomic<char*>[]> slots_{new std::atomic<char*>[kSlots]()};
  std::atomic<std::uint64_t> ranges_{0};
  std::mutex mutex_;  // of those who add tables; taken last
  std::vector<std::unique_ptr<Page[]>> tables_;
};

}  // namespace poolalloc
