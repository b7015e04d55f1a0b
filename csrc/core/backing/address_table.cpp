#include "core/backing/address_table.h"

namespace poolalloc {

void AddressTable::set_pages(Address start, PageIndex first, Bytes count, Heap* owner) {
  check(start, count * kPageBytes);
  for (Bytes i = 0; i < count; ++i) {
    const Address address = start + i * kPageBytes;
    auto& slot = slots_[address >> kSlotBits];
    char* entry = slot.load(std::memory_order_acquire);
    if (!has_pages(entry)) {
      std::lock_guard guard(mutex_);
      entry = slot.load(std::memory_order_relaxed);
      if (!has_pages(entry)) {
        tables_.emplace_back(new Page[kPagesOfSlot]);
        entry = reinterpret_cast<char*>(tables_.back().get()) + 1;
        slot.store(entry, std::memory_order_release);
      }
    }
    Page& page = pages_of(entry)[index_of(address)];
    page.page.store(first + static_cast<PageIndex>(i), std::memory_order_relaxed);
    page.owner.store(owner, std::memory_order_release);
  }
}

PageIndex AddressTable::page_at(Address address, const Heap* owner) const {
  const std::uint64_t slot = address >> kSlotBits;
  if (slot >= kSlots) return kNoPage;
  char* const entry = slots_[slot].load(std::memory_order_acquire);
  if (!has_pages(entry)) return kNoPage;
  const Page& page = pages_of(entry)[index_of(address)];
  if (page.owner.load(std::memory_order_acquire) != owner) return kNoPage;
  return page.page.load(std::memory_order_relaxed);
}

}  // namespace poolalloc
