// The only door to a device. core calls it; cuda_driver.cpp and model_driver.cpp implement it.
//
// Contract
// - Every call may come from any thread, and several at once. None throws.
// - device_count and device_info open no context of a device; every other call may.
// - Results: `ok`; `out_of_memory` (the device has no room: the caller may free memory and try again, nothing has
//   changed); `not_ready` (query_event only); `not_supported`; `failed` (anything else: last_error() of the same
//   thread names the call and the driver's code; nothing has changed).
// - May block until the device is done: synchronize_event, synchronize_device, and unmap and free_segment, which some
//   drivers order behind running work. Nothing else waits for the device.
// - Never called while a CUDA graph is captured from any stream of the device: synchronize_device, the copies,
//   pin_host, unpin_host; nor unmap, where the capture is known. An event recorded on a capturing stream belongs to the
//   graph: it is never queried or awaited by the host, and only streams of that capture may wait for it. Others may be,
//   but not by the thread that captures.
// - What depends on that takes a token as its first argument (core/streams/capture.h), which a driver only passes on: a
//   call that has not asked does not compile. (unmap takes none yet: its callers hold one, or their heap's lock.)
// - Sizes and addresses given to create / map / unmap / allow_access are multiples of DeviceInfo::granularity. A handle
//   has any number of pages and is mapped whole. What a driver charges grows with the number of handles that a call
//   covers and a little with their size, so few large handles cost less than many small ones (driver_work.h).
// - One physical handle may be mapped at several addresses at once (aliasing). Destroying a handle that is still mapped
//   keeps its memory until the last mapping goes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/base/types.h"

namespace poolalloc {

enum class Status { ok, out_of_memory, not_ready, not_supported, failed };

using PhysicalHandle = std::uint64_t;  // what cuMemCreate returns
using EventHandle = std::uint64_t;     // a CUevent as an integer

// Where a stream stands in the graph that it is being captured into: the nodes that its next one will follow.
struct CapturePlace {
  std::uint64_t capture = 0;  // 0: no place
  std::vector<std::uint64_t> nodes;
};

struct DeviceInfo {
  std::string name;
  Bytes total_bytes = 0;
  Bytes granularity = kPageBytes;  // smallest physical allocation
  bool virtual_memory = false;     // cuMem* virtual memory management is available
  bool shareable = false;          // what create makes can be exported to other processes
  // What of its virtual memory management is announced but answers with an error; empty: nothing. It is done without:
  // `virtual_memory` is false if nothing can be mapped, else memory has fewer properties.
  std::string fault;
};

class MayAsk;     // the calling thread captures nothing
class NoCapture;  // nobody captures anything

class POOLALLOC_API Driver {
 public:
  virtual ~Driver() = default;

  virtual int device_count() = 0;
  virtual Status device_info(DeviceIndex device, DeviceInfo* info) = 0;
  // The same of a device that is about to be used: it may get a context, and what it announces is tried.
  virtual Status open_device(DeviceIndex device, DeviceInfo* info) { return device_info(device, info); }
  // Free and total bytes of the device now, all processes counted.
  virtual Status memory_info(DeviceIndex device, Bytes* free_bytes, Bytes* total_bytes) = 0;

  // Address space only; `alignment` is a power of two.
  virtual Status reserve(DeviceIndex device, Bytes bytes, Bytes alignment, Address* address) = 0;
  virtual Status release(DeviceIndex device, Address address, Bytes bytes) = 0;
  // Physical memory only, one handle of any whole number of pages.
  virtual Status create(DeviceIndex device, Bytes bytes, PhysicalHandle* handle) = 0;
  virtual Status destroy(DeviceIndex device, PhysicalHandle handle) = 0;
  // The whole of `handle` appears at `address`. Not usable before allow_access.
  virtual Status map(DeviceIndex device, Address address, Bytes bytes, PhysicalHandle handle) = 0;
  // Read and write for `device`, whose memory it is, and for `peers`, which can reach it; the range may cover several
  // neighbouring mappings. Who had access keeps it.
  virtual Status allow_access(DeviceIndex device, Address address, Bytes bytes, DeviceSet peers = 0) = 0;
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
  virtual Status query_event(const MayAsk& token, DeviceIndex device, EventHandle event) = 0;  // ok or not_ready
  virtual Status synchronize_event(const MayAsk& token, DeviceIndex device, EventHandle event) = 0;
  virtual Status stream_wait_event(DeviceIndex device, StreamId stream, EventHandle event) = 0;
  virtual Status synchronize_device(const NoCapture& token, DeviceIndex device) = 0;
  // The device of a stream; of a default stream, the one that is current on this thread. not_supported where streams
  // of several devices have the same handles.
  virtual Status stream_device(StreamId stream, DeviceIndex* device) = 0;
  // Whether a CUDA graph is being captured on the stream; for the legacy default stream, whether one is captured that
  // forbids its use.
  virtual Status stream_capturing(DeviceIndex device, StreamId stream, bool* capturing) = 0;

  // Where the stream stands. not_supported where graphs are not shown; failed if it is not being captured.
  virtual Status capture_place(DeviceIndex device, StreamId stream, CapturePlace* place) = 0;
  // Whether what is captured on the stream from now on lies behind a place. not_ready: it does not, or too many nodes
  // would have to be looked at; failed: the stream is not, or no longer, in that capture.
  virtual Status capture_behind(DeviceIndex device, StreamId stream, const CapturePlace& place) = 0;

  // A stream of the caller's own, which no default stream waits for.
  virtual Status create_stream(DeviceIndex device, StreamId* stream) = 0;
  virtual Status destroy_stream(DeviceIndex device, StreamId stream) = 0;
  // Pinned memory of the host, which copies reach at full speed and without holding up their caller.
  virtual Status pin_host(DeviceIndex device, Bytes bytes, void** host) = 0;
  virtual Status unpin_host(DeviceIndex device, void* host) = 0;
  // Enqueued on the stream; the host's memory is the driver's until an event behind the copy has completed.
  virtual Status copy_to_host(DeviceIndex device, void* host, Address address, Bytes bytes, StreamId stream) = 0;
  virtual Status copy_from_host(DeviceIndex device, Address address, const void* host, Bytes bytes,
                                StreamId stream) = 0;

  // The text of this thread's last `failed` or `out_of_memory`: the call, its arguments, the driver's own code.
  virtual std::string last_error() const = 0;
};

// The kinds of calls, in the order of the interface; names are used in statistics, JSON and ModelDriver::fail.
// device_count, device_info, open_device and stream_device are not counted: they ask for nothing that changes; nor are
// capture_place and capture_behind, which only read a graph.
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
  X(create_stream)                \
  X(destroy_stream)               \
  X(pin_host)                     \
  X(unpin_host)                   \
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
