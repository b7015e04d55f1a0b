// What the heaps of one device share: its supplies of memory, its limit, and the sums over its heaps.
#pragma once

#include <atomic>

#include "core/backing/address_table.h"
#include "core/backing/page_supply.h"
#include "core/backing/segment_supply.h"
#include "core/base/types.h"
#include "core/recording/observer.h"
#include "core/streams/capture.h"
#include "driver/driver.h"

namespace poolalloc {

// Sums over the heaps of a device. With one heap its own counters are exact and these rest; with several, each heap
// publishes what changed since it last did, so that streams do not fight over one cache line.
struct DeviceTotals {
  std::atomic<std::int64_t> current{0};
  std::atomic<std::int64_t> peak{0};

  void add(std::int64_t change) { raise_peak(current.fetch_add(change, std::memory_order_relaxed) + change); }
  void raise_peak(std::int64_t value) {
    std::int64_t seen = peak.load(std::memory_order_relaxed);
    while (value > seen && !peak.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
    }
  }
};

struct DeviceShared {
  // Memory comes in segments alone, or in pages that are mapped and in segments where a heap is made so.
  DeviceShared(Driver& driver, DeviceIndex device, AddressTable& addresses, CaptureGate& gate, bool segmented = false)
      : driver(driver),
        device(device),
        addresses(addresses),
        gate(gate),
        segmented(segmented),
        holdings(device, &observer),
        page_supply(driver, device, holdings),
        segment_supply(driver, device, holdings) {
    page_supply.watch_resident(&resident.current, &resident.peak);
  }

  Driver& driver;
  const DeviceIndex device;
  AddressTable& addresses;  // where segments are entered
  CaptureGate& gate;        // of the process
  const bool segmented;
  std::atomic<Observer*> observer{nullptr};
  Holdings holdings;  // of all supplies
  PageSupply page_supply;
  SegmentSupply segment_supply;
  std::atomic<int> routes{0};              // pools that requests are sent to now
  std::atomic<std::int64_t> deferred{0};   // pending blocks, in all heaps
  std::atomic<bool> several_heaps{false};  // from the second heap on, totals are published
  DeviceTotals requested, live, pending, kept, resident;
  std::atomic<std::int64_t> idle_pages{0};   // of the heaps of streams; published as the totals are
  std::atomic<std::uint64_t> made_ahead{0};  // bit set: of that exact bin, blocks were made ahead

  // Of both supplies, pages first: segments are dearer to make.
  Bytes destroy_spare(Bytes bytes = ~Bytes{0}) {
    const Bytes pages = page_supply.destroy_spare(bytes);
    return pages < bytes ? pages + segment_supply.destroy_spare(bytes - pages) : pages;
  }
  Bytes spare_bytes() const { return page_supply.spare_bytes() + segment_supply.spare_bytes(); }
  // What is spare and of no use to a heap that has found it too little goes back to the device, where it serves all.
  // Not under a heap's lock.
  void release_misfits(bool segmented_heap) {
    segment_supply.destroy_spare();
    if (segmented_heap) page_supply.destroy_spare();
  }
};

}  // namespace poolalloc
