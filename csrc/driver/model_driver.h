// A device that is only arithmetic: it accounts for memory, addresses, mappings, events and captures exactly, and
// checks its caller, but runs no work and holds no data but what copies brought. For replay, tuning and tests on a
// machine with no GPU.
//
// Time passes only in advance() and in the synchronizing calls. With a lag of 0 (the default) every event completes as
// soon as it is recorded. Not modelled: the implicit ordering of the legacy default stream with other streams.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "driver/driver.h"

namespace poolalloc {

struct ModelOptions {
  int devices = 1;
  Bytes memory_bytes = Bytes{80} << 30;  // of each device
  Bytes granularity = kPageBytes;        // a power of two
  bool virtual_memory = true;            // false: reserve, create, map and their likes are not_supported
  bool shareable = true;                 // exported memory can be imported again in this process, by this driver
  std::uint64_t event_lag = 0;           // an event completes when time has advanced by this since it was recorded
};

class POOLALLOC_API ModelDriver final : public Driver {
 public:
  // Throws UsageError for no devices, more than 64, or a granularity that is no power of two.
  explicit ModelDriver(const ModelOptions& options = {});
  ~ModelDriver() override;
  ModelDriver(const ModelDriver&) = delete;
  ModelDriver& operator=(const ModelDriver&) = delete;

  // --- for whoever drives the model; these throw UsageError where there is no such device -------------------------
  // The `nth` next call of `call` (1: the next one) does nothing and returns `status`. Several may be waiting.
  void fail(DriverCall call, std::uint64_t nth, Status status);
  // Of those asked for with fail, how many are still to come.
  int failures_waiting() const { return failures_waiting_.load(std::memory_order_relaxed); }
  // Lets time pass on every device; events whose lag is over complete.
  void advance(std::uint64_t ticks);
  // The time on a device, in ticks: what advance and the synchronizing calls have let pass.
  std::uint64_t now(DeviceIndex device) const;
  // From now on events recorded on `stream` lag by `ticks`; never before earlier work of the same stream.
  void set_stream_lag(DeviceIndex device, StreamId stream, std::uint64_t ticks);
  // The handle is a stream of this device alone: to name it on another is a violation from now on. Handles that nobody
  // has told of are streams of every device, as those of default streams are.
  void add_stream(DeviceIndex device, StreamId stream);
  // While a stream of a device is captured, synchronize_device on that device is a violation, and so is unmap unless
  // nobody has told the caller of the capture. Events recorded on that stream belong to the graph: to query or await
  // them is one, too.
  void begin_capture(DeviceIndex device, StreamId stream, bool announced = true);
  void end_capture(DeviceIndex device, StreamId stream);

  // Physical bytes held now, and the most ever: created and not yet both destroyed and unmapped everywhere.
  Bytes used_bytes(DeviceIndex device) const;
  Bytes peak_used_bytes(DeviceIndex device) const;
  // What lies under `address`: false if nothing is mapped there or access was not granted.
  bool physical(DeviceIndex device, Address address, PhysicalHandle* handle, Bytes* offset) const;
  // The other devices that have access to what lies there.
  DeviceSet peers(DeviceIndex device, Address address) const;
  // Calls that broke the contract, and the text of the first.
  std::uint64_t violations() const { return violations_.load(std::memory_order_relaxed); }
  std::string first_violation() const;

  // --- Driver -----------------------------------------------------------------------------------------------------
  int device_count() override;
  Status device_info(DeviceIndex device, DeviceInfo* info) override;
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
  // The model has no graphs: not_supported.
  Status capture_place(DeviceIndex device, StreamId stream, CapturePlace* place) override;
  Status capture_behind(DeviceIndex device, StreamId stream, const CapturePlace& place) override;
  // What copies brought is kept; everything else reads as zeros. A copy takes place when it is enqueued.
  Status create_stream(DeviceIndex device, StreamId* stream) override;
  Status destroy_stream(DeviceIndex device, StreamId stream) override;
  Status pin_host(DeviceIndex device, Bytes bytes, void** host) override;
  Status unpin_host(DeviceIndex device, void* host) override;
  Status copy_to_host(DeviceIndex device, void* host, Address address, Bytes bytes, StreamId stream) override;
  Status copy_from_host(DeviceIndex device, Address address, const void* host, Bytes bytes, StreamId stream) override;
  std::string last_error() const override;

 private:
  struct AddressSpace;
  struct Device;
  struct Entry;  // a call under way: its device, locked, or why it goes no further
  struct Failure {
    DriverCall call;
    std::uint64_t countdown;
    Status status;
  };

  Entry enter(DriverCall call, DeviceIndex device);
  bool take_failure(DriverCall call, Status* status);
  Device& at(DeviceIndex device) const;  // throws UsageError
  // Notes a violation with a text made as printf makes it; returns `failed`.
  Status misuse(DriverCall call, DeviceIndex device, const char* format, ...) __attribute__((format(printf, 4, 5)));
  bool elsewhere(DriverCall call, DeviceIndex device, StreamId stream);
  // Takes physical memory on a locked device; `ok` or `out_of_memory`.
  Status take_memory(DriverCall call, DeviceIndex index, Device& device, Bytes bytes, PhysicalHandle* handle);
  // visit(handle, offset, at, bytes) for each physical page that the bytes lie in; `at` counts from their start.
  template <typename Visit>
  Status copy(DriverCall call, DeviceIndex device, Address address, Bytes bytes, StreamId stream, Visit visit);

  const ModelOptions options_;
  std::unique_ptr<AddressSpace> addresses_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::atomic<int> failures_waiting_{0};
  std::atomic<std::uint64_t> violations_{0};
  std::atomic<bool> has_owned_streams_{false};
  mutable std::mutex mutex_;  // of what follows; taken last
  std::vector<Stream> owned_streams_;
  std::vector<Failure> failures_;
  std::string first_violation_;
};

}  // namespace poolalloc
