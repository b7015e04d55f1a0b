// Which heap owns an address: one load from a flat table over the address space, a slot for every 4 GiB.
// Ranges given to heaps are aligned to 4 GiB, so a slot has one owner. Reading needs no lock.
#pragma once

#include <atomic>
#include <memory>

#include "core/errors.h"
#include "core/types.h"

namespace poolalloc {

class Heap;

class AddressTable {
 public:
  static constexpr int kSlotBits = 32;
  static constexpr Bytes kSlotBytes = Bytes{1} << kSlotBits;
  static constexpr int kAddressBits = 48;

  Heap* find(Address address) const {
    const std::uint64_t slot = address >> kSlotBits;
    return slot < kSlots ? slots_[slot].load(std::memory_order_acquire) : nullptr;
  }

  // `base` is a multiple of kSlotBytes; the owner is null to forget a range.
  void set(Address base, Bytes bytes, Heap* owner) {
    if ((base + bytes - 1) >> kSlotBits >= kSlots) throw DriverError("device address beyond 48 bits");
    for (Address address = base; address < base + bytes; address += kSlotBytes)
      slots_[address >> kSlotBits].store(owner, std::memory_order_release);
  }

 private:
  static constexpr std::uint64_t kSlots = std::uint64_t{1} << (kAddressBits - kSlotBits);
  std::unique_ptr<std::atomic<Heap*>[]> slots_{new std::atomic<Heap*>[kSlots]()};
};

}  // namespace poolalloc
