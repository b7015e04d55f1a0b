// Real CUDA devices, through libcuda.so.1 opened at first use: poolalloc links no CUDA library, so one build serves
// every CUDA version and machines with none. Works in the primary context of a device, which is the one torch uses. Not
// here: who may see the memory it makes (core, plugin).
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <unordered_map>

#include "driver/driver.h"

namespace poolalloc {

class POOLALLOC_API CudaDriver final : public Driver {
 public:
  CudaDriver() = default;
  // Lets go of the contexts it used.
  ~CudaDriver() override;
  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  // Whether there is a driver with a device; if not, one line that says what is missing in *why, if not null.
  static bool available(std::string* why = nullptr);
  // Whether the process has a context of the device, its own or torch's. One takes hundreds of MiB of the device, so
  // nothing opens one that does not have to.
  bool in_use(DeviceIndex device);

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
  static constexpr int kMaxDevices = 64;
  struct Device {
    std::atomic<bool> known{false};       // set after ordinal and what the device can do
    std::atomic<void*> context{nullptr};  // null until first used
    int ordinal = 0;
    std::atomic<bool> rdma{false};       // memory can be reached by network cards, as torch's own allocations can
    std::atomic<bool> shareable{false};  // memory can be exported as a file descriptor
    // Guarded by trial_mutex_:
    bool tried = false;  // whether mapped memory works
    bool works = false;  // it does
    std::string fault;   // DeviceInfo::fault
  };
  struct Range {
    Address base = 0;
    Bytes bytes = 0;
  };
  class Scope;  // makes the context of a device current for one call

  Device* find(DeviceIndex device, const char* call);  // without a context
  Device* open(DeviceIndex device, const char* call);
  void try_mapping(Device& device);

  Device devices_[kMaxDevices];
  std::mutex mutex_;                          // of finding and opening a device, and of wider_
  std::mutex trial_mutex_;                    // held while a page is tried
  std::unordered_map<Address, Range> wider_;  // reserved with room to align them: what the driver knows them as
};

}  // namespace poolalloc
