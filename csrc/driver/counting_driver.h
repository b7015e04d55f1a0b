// An adaptor that counts what is asked through it, and grants the peers of a device what it grants the device; the
// device work is the wrapped driver's. Calls are counted by kind, those that fail too, since they cost the time of one.
// The work that is done is counted by handles and pages, which is what drivers charge for. Where memory is asked for,
// `not_supported` becomes `failed`: the heaps have their own meaning for it, that addresses are missing.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>

#include "driver/driver.h"
#include "driver/driver_work.h"

namespace poolalloc {

class POOLALLOC_API CountingDriver final : public Driver {
 public:
  // `driver` must outlive this.
  explicit CountingDriver(Driver& driver) : driver_(driver) {}

  // Calls of one kind since construction. Any thread; exact once the callers have stopped.
  std::uint64_t calls(DriverCall call) const { return counts_[static_cast<std::size_t>(call)].load(relaxed); }
  // The kinds called at least once, by name.
  std::map<std::string, std::uint64_t> calls() const;
  // The handles and pages of what was done, by the names of DriverWork::counts.
  std::map<std::string, std::uint64_t> work() const { return work_.counts(); }

  // From now on allow_access for `device` allows `peer` too, or no longer.
  void allow_peer(DeviceIndex device, DeviceIndex peer);
  void forget_peer(DeviceIndex device, DeviceIndex peer);

  int device_count() override;
  Status device_info(DeviceIndex device, DeviceInfo* info) override;
  Status open_device(DeviceIndex device, DeviceInfo* info) override;
  Status memory_info(DeviceIndex device, Bytes* free_bytes, Bytes* total_bytes) override;
  Status reserve(DeviceIndex device, Bytes bytes, Bytes alignment, Address* address) override;
  Status release(DeviceIndex device, Address address, Bytes bytes) override;
  Status create(DeviceIndex device, Bytes bytes, PhysicalHandle* handle) override;
  Status destroy(DeviceIndex device, PhysicalHandle handle) override;
  Status map(DeviceIndex device, Address address, Bytes bytes, PhysicalHandle handle) override;
  Status allow_access(DeviceIndex device, Address address, Bytes bytes, DeviceSet peers = 0) override;
  Status unmap(DeviceIndex device, Address address, Bytes bytes) override;
  Status export_handle(DeviceIndex device, PhysicalHandle handle, int* descriptor) override;
  Status import_handle(DeviceIndex device, int descriptor, PhysicalHandle* handle) override;
  Status allocate_segment(DeviceIndex device, Bytes bytes, Address* address) override;
  Status free_segment(DeviceIndex device, Address address) override;
  Status create_event(DeviceIndex device, EventHandle* event) override;
  Status destroy_event(DeviceIndex device, EventHandle event) override;
  Status record_event(DeviceIndex device, EventHandle event, StreamId stream) override;
  Status query_event(const MayAsk& token, DeviceIndex device, EventHandle event) override;
  Status synchronize_event(const MayAsk& token, DeviceIndex device, EventHandle event) override;
  Status stream_wait_event(DeviceIndex device, StreamId stream, EventHandle event) override;
  Status synchronize_device(const NoCapture& token, DeviceIndex device) override;
  Status stream_device(StreamId stream, DeviceIndex* device) override;
  Status stream_capturing(DeviceIndex device, StreamId stream, bool* capturing) override;
  Status capture_place(DeviceIndex device, StreamId stream, CapturePlace* place) override;
  Status capture_behind(DeviceIndex device, StreamId stream, const CapturePlace& place) override;
  Status create_stream(DeviceIndex device, StreamId* stream) override;
  Status destroy_stream(DeviceIndex device, StreamId stream) override;
  Status pin_host(DeviceIndex device, Bytes bytes, void** host) override;
  Status unpin_host(DeviceIndex device, void* host) override;
  Status copy_to_host(DeviceIndex device, void* host, Address address, Bytes bytes, StreamId stream) override;
  Status copy_from_host(DeviceIndex device, Address address, const void* host, Bytes bytes, StreamId stream) override;
  std::string last_error() const override;

 private:
  static constexpr std::memory_order relaxed = std::memory_order_relaxed;
  void count(DriverCall call) { counts_[static_cast<std::size_t>(call)].fetch_add(1, relaxed); }

  static constexpr DeviceIndex kMaxDevices = 64;

  Driver& driver_;
  std::atomic<DeviceSet> peers_[kMaxDevices] = {};  // of each device
  std::atomic<std::uint64_t> counts_[kDriverCallKinds] = {};
  DriverWork work_;
};

}  // namespace poolalloc
