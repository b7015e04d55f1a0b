// The only door to a device. core calls it; cuda_driver.cpp and model_driver.cpp implement it.
//
// Contract
// - Every call may come from any thread, and several at once. None throws.
// - device_count and device_info open no context of a device; every other call may.
// - Results: `ok`; `out_of_memory` (the device has no room: the caller may free memory and try again, nothing has
//   changed); `not_ready` (query_event only); `not_supported`; `failed` (anything else: last_error() of the same
//   thread names the call and the driver's code; nothing has changed).
// - May block until the device is done: synchronize_event, synchronize_device, the copies, and unmap and free_segment,
//   which some drivers order behind running work. Nothing else waits for the device.
// - Never called while a CUDA graph is captured from any stream of the device: query_event, synchronize_event,
//   synchronize_device, unmap, copy_to_host, copy_from_host. An event recorded on a capturing stream belongs to the
//   graph: it is never queried, and only streams of that capture may wait for it.
// - Sizes and addresses given to create / map / unmap / allow_access are multiples of DeviceInfo::granularity.
// - One physical handle may be mapped at several addresses at once (aliasing). Destroying a handle that is still mapped
//   keeps its memory until the last mapping goes.
#pragma once

#include <cstddef>
#include <string>

#include "core/types.h"

namespace poolalloc {

enum class Status { ok, out_of_memory, not_ready, not_supported, failed };

using PhysicalHandle = std::uint64_t;  // what cuMemCreate returns
using EventHandle = std::uint64_t;     // a CUevent as an integer

struct DeviceInfo {
  std::string name;
  Bytes total_bytes = 0;
  Bytes granularity = kPageBytes;  // smallest physical allocation
  bool virtual_memory = false;     // cuMem* virtual memory management is available
  bool shareable = false;          // what create makes can be exported to other processes
};

class POOLALLOC_API Driver {
 public:
  virtual ~Driver() = default;

  virtual int device_count() = 0;
  virtual Status device_info(DeviceIndex device, DeviceInfo* info) = 0;
  // Free and total bytes of the device now, all processes counted.
  virtual Status memory_info(DeviceIndex device, Bytes* free_bytes, Bytes* total_bytes) = 0;

  // Address space only; `alignment` is a power of two.
  virtual Status reserve(DeviceIndex device, Bytes bytes, Bytes alignment, Address* address) = 0;
  virtual Status release(DeviceIndex device, Address address, Bytes bytes) = 0;
  // Physical memory only.
  virtual Status create(DeviceIndex device, Bytes bytes, PhysicalHandle* handle) = 0;
  virtual Status destroy(DeviceIndex device, PhysicalHandle handle) = 0;
  // The whole of `handle` appears at `address`. Not usable before allow_access.
  virtual Status map(DeviceIndex device, Address address, Bytes bytes, PhysicalHandle handle) = 0;
  // Read and write for `device`; the range may cover several neighbouring mappings.
  virtual Status allow_access(DeviceIndex device, Address address, Bytes bytes) = 0;
  // The range covers whole mappings.
  virtual Status unmap(DeviceIndex device, Address address, Bytes bytes) = 0;
  // A file descriptor of the process that names the physical memory, and the memory that another process's descriptor
  // names, as a handle of this one: it is destroyed apart, and the memory lives as long as any handle or mapping of any
  // process. The descriptor may be closed right after. not_supported where DeviceInfo::shareable is false.
  virtual Status export_handle(DeviceIndex device, PhysicalHandle handle, int* descriptor) = 0;
  virtual Status import_handle(DeviceIndex device, int descriptor, PhysicalHandle* handle) = 0;
  // Address and physical memory in one (cuMemAlloc), for devices without virtual memory management.
  virtual Status allocate_segment(DeviceIndex device, Bytes bytes, Address* address) = 0;
  virtual Status free_segment(DeviceIndex device, Address address) = 0;

  // Events carry no timing.
  virtual Status create_event(DeviceIndex device, EventHandle* event) = 0;
  virtual Status destroy_event(DeviceIndex device, EventHandle event) = 0;
  virtual Status record_event(DeviceIndex device, EventHandle event, StreamId stream) = 0;
  virtual Status query_event(DeviceIndex device, EventHandle event) = 0;  // ok or not_ready
  virtual Status synchronize_event(DeviceIndex device, EventHandle event) = 0;
  virtual Status stream_wait_event(DeviceIndex device, StreamId stream, EventHandle event) = 0;
  virtual Status synchronize_device(DeviceIndex device) = 0;
  // Whether a CUDA graph is being captured on the stream; for the legacy default stream, whether one is captured that
  // forbids its use.
  virtual Status stream_capturing(DeviceIndex device, StreamId stream, bool* capturing) = 0;

  // Between host memory and device memory, synchronously; for pause and resume.
  virtual Status copy_to_host(DeviceIndex device, void* host, Address address, Bytes bytes) = 0;
  virtual Status copy_from_host(DeviceIndex device, Address address, const void* host, Bytes bytes) = 0;

  // The text of this thread's last `failed` or `out_of_memory`: the call, its arguments, the driver's own code.
  virtual std::string last_error() const = 0;
};

// The kinds of calls, in the order of the interface; names are used in statistics, JSON and ModelDriver::fail.
// device_count and device_info are not counted: they ask the driver nothing that it has not said before.
// clang-format off
#define POOLALLOC_DRIVER_CALLS(X) \
  X(memory_info)                  \
  X(reserve)                      \
  X(release)                      \
  X(create)                       \
  X(destroy)                      \
  X(map)                          \
  X(allow_access)                 \
  X(unmap)                        \
  X(export_handle)                \
  X(import_handle)                \
  X(allocate_segment)             \
  X(free_segment)                 \
  X(create_event)                 \
  X(destroy_event)                \
  X(record_event)                 \
  X(query_event)                  \
  X(synchronize_event)            \
  X(stream_wait_event)            \
  X(synchronize_device)           \
  X(stream_capturing)             \
  X(copy_to_host)                 \
  X(copy_from_host)
// clang-format on

enum class DriverCall {
#define X(name) name,
  POOLALLOC_DRIVER_CALLS(X)
#undef X
};

inline constexpr const char* kDriverCallNames[] = {
#define X(name) #name,
    POOLALLOC_DRIVER_CALLS(X)
#undef X
};
inline constexpr std::size_t kDriverCallKinds = sizeof(kDriverCallNames) / sizeof(kDriverCallNames[0]);

inline constexpr const char* driver_call_name(DriverCall call) {
  return kDriverCallNames[static_cast<std::size_t>(call)];
}

}  // namespace poolalloc
