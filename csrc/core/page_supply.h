// Physical pages of one device: created within the limit, kept when nobody needs them, given back on request.
// One supply serves every heap of the device, small and large blocks alike; that is where most of the last percents of
// memory are (docs/design/placement.md). Not for addresses: residency.h says where a page appears.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

#include "core/supply.h"

namespace poolalloc {

class PageSupply final : public Supply {
 public:
  using Supply::Supply;

  // Appends `count` pages that no heap holds: spare ones, then new ones. On any status but ok nothing is appended:
  // out_of_memory when the limit says so, before any page is made, or the device does; pages made by then are spare.
  Status take(std::size_t count, std::vector<PhysicalHandle>* pages);
  // Spare ones only. out_of_memory: there are too few, and `count` is how many are missing.
  Status take_spare(std::uint32_t* count, std::vector<PhysicalHandle>* pages);
  // Creates pages until so many bytes of them are spare. out_of_memory when the limit or the device ends it.
  Status prepare(Bytes spare) noexcept;
  // `wake` is called, on the thread that takes pages, whenever it leaves less than that spare. Once, before any is
  // taken.
  void watch_spare(Bytes spare, std::function<void()> wake);
  // Of these pages, those that are spare.
  std::vector<PhysicalHandle> take_these(std::vector<PhysicalHandle> pages);
  // No work touches the page any more. It is mapped nowhere but where it comes from on loan.
  void give(PhysicalHandle page);

  // Whoever gives pages on loan, which stay mapped there, until they are to go back to the device.
  class Lender {
   public:
    // Unmaps these where they are on loan, and removes from them those whose mappings stay.
    virtual void end_loans(std::vector<PhysicalHandle>* pages) noexcept = 0;

   protected:
    ~Lender() = default;
  };
  void add_lender(Lender* lender);
  void remove_lender(Lender* lender);

  using Supply::destroy_spare;
  Bytes destroy_spare(Bytes bytes) noexcept override;
  Bytes spare_bytes() const override;

  // Pages that may be made before the device, or what poolalloc may hold of it, is nearly full: spare ones, and new
  // ones up to 15/16 of the limit.
  std::uint64_t room() const;
  // Mappings that heaps have made of pages, over all of them.
  void count_mappings(std::int64_t change) { mappings_.fetch_add(change, std::memory_order_relaxed); }
  std::uint64_t mappings() const { return static_cast<std::uint64_t>(mappings_.load(std::memory_order_relaxed)); }

 private:
  std::vector<PhysicalHandle> pop_spare(std::size_t count);
  std::vector<PhysicalHandle> end_loans(std::vector<PhysicalHandle>* pages);

  std::vector<PhysicalHandle> spare_;
  std::mutex lenders_mutex_;  // taken before a lender's lock
  std::vector<Lender*> lenders_;
  std::atomic<std::int64_t> mappings_{0};
  Bytes watched_ = 0;
  std::function<void()> wake_;
};

}  // namespace poolalloc
