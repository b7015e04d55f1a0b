// See counting_driver.h. Every method counts, then forwards.
#include "driver/counting_driver.h"

#include <bit>

namespace poolalloc {

namespace {
Status refusal(Status status) { return status == Status::not_supported ? Status::failed : status; }
}  // namespace

std::map<std::string, std::uint64_t> CountingDriver::calls() const {
  std::map<std::string, std::uint64_t> result;
  for (std::size_t kind = 0; kind < kDriverCallKinds; ++kind)
    if (std::uint64_t count = counts_[kind].load(relaxed)) result[kDriverCallNames[kind]] = count;
  return result;
}

void CountingDriver::allow_peer(DeviceIndex device, DeviceIndex peer) {
  if (device >= 0 && device < kMaxDevices && peer >= 0 && peer < kMaxDevices)
    peers_[device].fetch_or(std::uint64_t{1} << peer);
}

void CountingDriver::forget_peer(DeviceIndex device, DeviceIndex peer) {
  if (device >= 0 && device < kMaxDevices && peer >= 0 && peer < kMaxDevices)
    peers_[device].fetch_and(~(std::uint64_t{1} << peer));
}

int CountingDriver::device_count() { return driver_.device_count(); }

Status CountingDriver::device_info(DeviceIndex device, DeviceInfo* info) { return driver_.device_info(device, info); }
Status CountingDriver::open_device(DeviceIndex device, DeviceInfo* info) { return driver_.open_device(device, info); }

std::string CountingDriver::last_error() const { return driver_.last_error(); }

Status CountingDriver::memory_info(DeviceIndex device, Bytes* free_bytes, Bytes* total_bytes) {
  count(DriverCall::memory_info);
  return driver_.memory_info(device, free_bytes, total_bytes);
}

Status CountingDriver::reserve(DeviceIndex device, Bytes bytes, Bytes alignment, Address* address) {
  count(DriverCall::reserve);
  const Status status = driver_.reserve(device, bytes, alignment, address);
  if (status == Status::ok) work_.addresses_reserved();
  return status;
}

Status CountingDriver::release(DeviceIndex device, Address address, Bytes bytes) {
  count(DriverCall::release);
  const Status status = driver_.release(device, address, bytes);
  if (status == Status::ok) work_.addresses_released();
  return status;
}

Status CountingDriver::create(DeviceIndex device, Bytes bytes, PhysicalHandle* handle) {
  count(DriverCall::create);
  const Status status = refusal(driver_.create(device, bytes, handle));
  if (status == Status::ok) work_.created(*handle, bytes);
  return status;
}

Status CountingDriver::destroy(DeviceIndex device, PhysicalHandle handle) {
  count(DriverCall::destroy);
  const DriverWork::Ending ending = work_.destroying(handle);
  const Status status = driver_.destroy(device, handle);
  work_.ended(ending, status == Status::ok);
  return status;
}

Status CountingDriver::map(DeviceIndex device, Address address, Bytes bytes, PhysicalHandle handle) {
  count(DriverCall::map);
  const Status status = refusal(driver_.map(device, address, bytes, handle));
  if (status == Status::ok) work_.mapped(address, bytes);
  return status;
}

Status CountingDriver::allow_access(DeviceIndex device, Address address, Bytes bytes, DeviceSet peers) {
  count(DriverCall::allow_access);
  if (device < kMaxDevices) peers |= peers_[device].load();
  const Status status = refusal(driver_.allow_access(device, address, bytes, peers));
  if (status == Status::ok) work_.granted(address, bytes, 1 + std::popcount(peers));
  return status;
}

Status CountingDriver::unmap(DeviceIndex device, Address address, Bytes bytes) {
  count(DriverCall::unmap);
  const Status status = driver_.unmap(device, address, bytes);
  if (status == Status::ok) work_.unmapped(address, bytes);
  return status;
}

Status CountingDriver::export_handle(DeviceIndex device, PhysicalHandle handle, int* descriptor) {
  count(DriverCall::export_handle);
  return driver_.export_handle(device, handle, descriptor);
}

Status CountingDriver::import_handle(DeviceIndex device, int descriptor, PhysicalHandle* handle) {
  count(DriverCall::import_handle);
  return driver_.import_handle(device, descriptor, handle);
}

Status CountingDriver::allocate_segment(DeviceIndex device, Bytes bytes, Address* address) {
  count(DriverCall::allocate_segment);
  const Status status = refusal(driver_.allocate_segment(device, bytes, address));
  if (status == Status::ok) work_.segment_allocated(*address, bytes);
  return status;
}

Status CountingDriver::free_segment(DeviceIndex device, Address address) {
  count(DriverCall::free_segment);
  const DriverWork::Ending ending = work_.freeing_segment(address);
  const Status status = driver_.free_segment(device, address);
  work_.ended(ending, status == Status::ok);
  return status;
}

Status CountingDriver::create_event(DeviceIndex device, EventHandle* event) {
  count(DriverCall::create_event);
  return driver_.create_event(device, event);
}

Status CountingDriver::destroy_event(DeviceIndex device, EventHandle event) {
  count(DriverCall::destroy_event);
  return driver_.destroy_event(device, event);
}

Status CountingDriver::record_event(DeviceIndex device, EventHandle event, StreamId stream) {
  count(DriverCall::record_event);
  return driver_.record_event(device, event, stream);
}

Status CountingDriver::query_event(const MayAsk& token, DeviceIndex device, EventHandle event) {
  count(DriverCall::query_event);
  return driver_.query_event(token, device, event);
}

Status CountingDriver::synchronize_event(const MayAsk& token, DeviceIndex device, EventHandle event) {
  count(DriverCall::synchronize_event);
  return driver_.synchronize_event(token, device, event);
}

Status CountingDriver::stream_wait_event(DeviceIndex device, StreamId stream, EventHandle event) {
  count(DriverCall::stream_wait_event);
  return driver_.stream_wait_event(device, stream, event);
}

Status CountingDriver::synchronize_device(const NoCapture& token, DeviceIndex device) {
  count(DriverCall::synchronize_device);
  return driver_.synchronize_device(token, device);
}

Status CountingDriver::stream_device(StreamId stream, DeviceIndex* device) {
  return driver_.stream_device(stream, device);
}

Status CountingDriver::capture_place(DeviceIndex device, StreamId stream, CapturePlace* place) {
  return driver_.capture_place(device, stream, place);
}

Status CountingDriver::capture_behind(DeviceIndex device, StreamId stream, const CapturePlace& place) {
  return driver_.capture_behind(device, stream, place);
}

Status CountingDriver::stream_capturing(DeviceIndex device, StreamId stream, bool* capturing) {
  count(DriverCall::stream_capturing);
  return driver_.stream_capturing(device, stream, capturing);
}

Status CountingDriver::create_stream(DeviceIndex device, StreamId* stream) {
  count(DriverCall::create_stream);
  return driver_.create_stream(device, stream);
}

Status CountingDriver::destroy_stream(DeviceIndex device, StreamId stream) {
  count(DriverCall::destroy_stream);
  return driver_.destroy_stream(device, stream);
}

Status CountingDriver::pin_host(DeviceIndex device, Bytes bytes, void** host) {
  count(DriverCall::pin_host);
  return driver_.pin_host(device, bytes, host);
}

Status CountingDriver::unpin_host(DeviceIndex device, void* host) {
  count(DriverCall::unpin_host);
  return driver_.unpin_host(device, host);
}

Status CountingDriver::copy_to_host(DeviceIndex device, void* host, Address address, Bytes bytes, StreamId stream) {
  count(DriverCall::copy_to_host);
  return driver_.copy_to_host(device, host, address, bytes, stream);
}

Status CountingDriver::copy_from_host(DeviceIndex device, Address address, const void* host, Bytes bytes,
                                      StreamId stream) {
  count(DriverCall::copy_from_host);
  return driver_.copy_from_host(device, address, host, bytes, stream);
}

}  // namespace poolalloc
