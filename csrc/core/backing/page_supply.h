// Physical memory of one device in spans of whole pages: created within the limit, kept when nobody needs it, given
// back on request. One supply serves every heap of the device, small and large blocks alike; that is where most of the
// last percents of memory are (docs/design/placement.md). Not for addresses: residency.h says where a page appears.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

#include "core/backing/supply.h"

namespace poolalloc {

// One physical handle and how many pages it is.
struct PhysicalSpan {
  PhysicalHandle handle = 0;
  std::uint32_t pages = 0;
};

class PageSupply final : public Supply {
 public:
  using Supply::Supply;

  // A new span. out_of_memory when the limit says so, or the device does.
  Status make(std::uint32_t pages, PhysicalHandle* handle);
  // What no heap holds now.
  std::vector<PhysicalSpan> spare() const;
  // All of these, which were spare. False, and none is taken, if one of them no longer is.
  bool take_these(std::vector<PhysicalHandle> handles);
  // Creates spans until so many bytes are spare. out_of_memory when the limit or the device ends it.
  Status prepare(Bytes spare) noexcept;
  // Of how many pages those spans are, where so many are missing.
  void set_prepared_pages(std::uint32_t pages) { prepared_pages_ = pages; }
  // `wake` is called, on the thread that takes spans, whenever it leaves less than that spare. Once, before any is
  // taken.
  void watch_spare(Bytes spare, std::function<void()> wake);
  // No work touches the span any more. It is mapped nowhere but where it comes from on loan.
  void give(PhysicalSpan span);

  // Whoever gives spans on loan, which stay mapped there, until they are to go back to the device.
  class Lender {
   public:
    // Unmaps these where they are on loan, and removes from them those whose mappings stay.
    virtual void end_loans(std::vector<PhysicalHandle>* handles) noexcept = 0;

   protected:
    ~Lender() = default;
  };
  void add_lender(Lender* lender);
  void remove_lender(Lender* lender);

  // Gives so much spare memory back to the device, or a little more, since it goes in spans, but for what the driver
  // refuses to take. Returns the bytes.
  Bytes destroy_spare(Bytes bytes = ~Bytes{0}) noexcept;
  // Spans that a heap held until now, and has unmapped, go to the device; what the driver refuses to take is spare.
  // Returns the bytes.
  Bytes destroy(std::vector<PhysicalSpan> spans) noexcept;
  Bytes spare_bytes() const;

  // Pages that may be made before the device, or what poolalloc may hold of it, is nearly full: spare ones, and new
  // ones up to 15/16 of the limit.
  std::uint64_t room() const;
  // Whether the limit allows so many new pages.
  bool has_room(std::uint64_t pages) const;
  // Of all heaps, and spare ones.
  std::uint64_t held_pages() const;
  // Resident bytes of all heaps, now and at their peak, where somebody counts them; else 0.
  void watch_resident(const std::atomic<std::int64_t>* now, const std::atomic<std::int64_t>* peak) {
    resident_ = now;
    resident_peak_ = peak;
  }
  std::int64_t resident() const { return resident_ != nullptr ? resident_->load(std::memory_order_relaxed) : 0; }
  std::int64_t resident_peak() const {
    return resident_peak_ != nullptr ? resident_peak_->load(std::memory_order_relaxed) : 0;
  }
  // The most pages that a span had.
  std::uint32_t largest_span() const { return largest_.load(std::memory_order_relaxed); }
  // Mappings that heaps have made, over all of them.
  void count_mappings(std::int64_t change) { mappings_.fetch_add(change, std::memory_order_relaxed); }
  std::uint64_t mappings() const { return static_cast<std::uint64_t>(mappings_.load(std::memory_order_relaxed)); }

 private:
  std::vector<PhysicalSpan> pop_spare(Bytes bytes);
  std::vector<PhysicalSpan> end_loans(std::vector<PhysicalSpan>* spans);
  // With the lock held.
  void change_spare(std::int64_t bytes);

  std::vector<PhysicalSpan> spare_;
  Bytes spare_bytes_ = 0;
  std::mutex lenders_mutex_;  // taken before a lender's lock
  std::vector<Lender*> lenders_;
  std::atomic<std::int64_t> mappings_{0};
  const std::atomic<std::int64_t>* resident_ = nullptr;
  const std::atomic<std::int64_t>* resident_peak_ = nullptr;
  std::atomic<std::uint32_t> largest_{1};
  std::uint32_t prepared_pages_ = 1;
  Bytes watched_ = 0;
  std::function<void()> wake_;
};

}  // namespace poolalloc
