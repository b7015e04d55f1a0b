// ModelDriver: time, streams, events and captures. Memory is in model_driver.cpp.
#include <algorithm>
#include <cinttypes>

#include "core/base/errors.h"
#include "driver/model_device.h"
#include "driver/model_driver.h"

namespace poolalloc {

// --- for whoever drives the model -----------------------------------------------------------------------------------

void ModelDriver::advance(std::uint64_t ticks) {
  for (auto& device : devices_) {
    std::lock_guard guard(device->mutex);
    device->now += ticks;
  }
}

std::uint64_t ModelDriver::now(DeviceIndex device) const {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  return d.now;
}

void ModelDriver::set_stream_lag(DeviceIndex device, StreamId stream, std::uint64_t ticks) {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  d.stream(stream).lag = ticks;
}

void ModelDriver::add_stream(DeviceIndex device, StreamId stream) {
  at(device);
  std::lock_guard guard(mutex_);
  owned_streams_.push_back({device, stream});
  has_owned_streams_.store(true, std::memory_order_relaxed);
}

void ModelDriver::begin_capture(DeviceIndex device, StreamId stream, bool announced) {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  if (d.stream(stream).capture != 0) throw UsageError("model driver: stream is being captured already");
  d.stream(stream).capture = ++d.captures_begun;
  d.stream(stream).announced = announced;
  d.captures_active.fetch_add(1);
  d.captures_announced.fetch_add(announced ? 1 : 0);
}

void ModelDriver::end_capture(DeviceIndex device, StreamId stream) {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  std::uint64_t capture = d.stream(stream).capture;
  if (capture == 0) throw UsageError("model driver: stream is not being captured");
  d.captures_announced.fetch_sub(d.stream(stream).announced ? 1 : 0);
  for (Device::Stream& joined : d.streams)
    if (joined.capture == capture) joined.capture = 0;
  d.captures_active.fetch_sub(1);
}

// --- events ---------------------------------------------------------------------------------------------------------

Status ModelDriver::create_event(DeviceIndex device, EventHandle* event) {
  Entry entry = enter(DriverCall::create_event, device);
  if (entry.stopped()) return entry.status;
  *event = entry->events.add({});
  return Status::ok;
}

Status ModelDriver::destroy_event(DeviceIndex device, EventHandle event) {
  Entry entry = enter(DriverCall::destroy_event, device);
  if (entry.stopped()) return entry.status;
  if (entry->events.find(event) == nullptr)
    return misuse(DriverCall::destroy_event, device, "event %#" PRIx64 " is not a live event", event);
  entry->events.remove(event);
  return Status::ok;
}

// Notes a violation if the stream belongs to another device.
bool ModelDriver::elsewhere(DriverCall call, DeviceIndex device, StreamId stream) {
  if (!has_owned_streams_.load(std::memory_order_relaxed)) return false;
  DeviceIndex owner = device;
  {
    std::lock_guard guard(mutex_);
    for (const Stream& each : owned_streams_)
      if (each.id == stream) owner = each.device;
  }
  if (owner == device) return false;
  misuse(call, device, "stream %#" PRIx64 " is one of device %d", stream, owner);
  return true;
}

Status ModelDriver::record_event(DeviceIndex device, EventHandle event, StreamId stream) {
  if (elsewhere(DriverCall::record_event, device, stream)) return Status::failed;
  Entry entry = enter(DriverCall::record_event, device);
  if (entry.stopped()) return entry.status;
  Device::Event* found = entry->events.find(event);
  if (found == nullptr)
    return misuse(DriverCall::record_event, device, "event %#" PRIx64 " is not a live event", event);
  Device::Stream& target = entry->stream(stream);
  found->capture = target.capture;
  if (target.capture != 0) return Status::ok;  // part of a graph: nothing runs now
  target.busy_until = std::max(target.busy_until, entry->now + target.lag);
  found->completion = target.busy_until;
  return Status::ok;
}

Status ModelDriver::query_event(const MayAsk&, DeviceIndex device, EventHandle event) {
  Entry entry = enter(DriverCall::query_event, device);
  if (entry.stopped()) return entry.status;
  Device::Event* found = entry->events.find(event);
  if (found == nullptr) return misuse(DriverCall::query_event, device, "event %#" PRIx64 " is not a live event", event);
  if (found->capture != 0)
    return misuse(DriverCall::query_event, device, "event %#" PRIx64 " belongs to a capture", event);
  return found->completion <= entry->now ? Status::ok : Status::not_ready;
}

Status ModelDriver::synchronize_event(const MayAsk&, DeviceIndex device, EventHandle event) {
  Entry entry = enter(DriverCall::synchronize_event, device);
  if (entry.stopped()) return entry.status;
  Device::Event* found = entry->events.find(event);
  if (found == nullptr)
    return misuse(DriverCall::synchronize_event, device, "event %#" PRIx64 " is not a live event", event);
  if (found->capture != 0)
    return misuse(DriverCall::synchronize_event, device, "event %#" PRIx64 " belongs to a capture", event);
  entry->wait_until(found->completion);
  return Status::ok;
}

Status ModelDriver::stream_wait_event(DeviceIndex device, StreamId stream, EventHandle event) {
  if (elsewhere(DriverCall::stream_wait_event, device, stream)) return Status::failed;
  Entry entry = enter(DriverCall::stream_wait_event, device);
  if (entry.stopped()) return entry.status;
  Device::Event* found = entry->events.find(event);
  if (found == nullptr)
    return misuse(DriverCall::stream_wait_event, device, "event %#" PRIx64 " is not a live event", event);
  Device::Stream& target = entry->stream(stream);
  if (found->capture != 0 && target.capture == 0 && entry->capture_active(found->capture))
    target.capture = found->capture;  // the wait makes the stream part of the capture
  if (found->capture != target.capture)
    return misuse(DriverCall::stream_wait_event, device,
                  "event %#" PRIx64 " and stream %#" PRIx64 " are not in the same capture", event, stream);
  if (target.capture == 0) target.busy_until = std::max(target.busy_until, found->completion);
  return Status::ok;
}

Status ModelDriver::synchronize_device(const NoCapture&, DeviceIndex device) {
  Entry entry = enter(DriverCall::synchronize_device, device);
  if (entry.stopped()) return entry.status;
  if (entry->capturing()) return misuse(DriverCall::synchronize_device, device, "during a capture");
  // What was enqueued until now ends as an event recorded now would complete, also on streams that had none.
  std::uint64_t end = entry->now + entry->event_lag;
  for (const Device::Stream& stream : entry->streams) end = std::max({end, stream.busy_until, entry->now + stream.lag});
  entry->wait_until(end);
  return Status::ok;
}

Status ModelDriver::stream_device(StreamId stream, DeviceIndex* device) {
  std::lock_guard guard(mutex_);
  for (const Stream& each : owned_streams_) {
    if (each.id != stream) continue;
    *device = each.device;
    return Status::ok;
  }
  return Status::not_supported;
}

Status ModelDriver::stream_capturing(DeviceIndex device, StreamId stream, bool* capturing) {
  if (elsewhere(DriverCall::stream_capturing, device, stream)) return Status::failed;
  Entry entry = enter(DriverCall::stream_capturing, device);
  if (entry.stopped()) return entry.status;
  *capturing = entry->capturing() && entry->stream(stream).capture != 0;
  return Status::ok;
}

Status ModelDriver::capture_place(DeviceIndex, StreamId, CapturePlace*) { return Status::not_supported; }

Status ModelDriver::capture_behind(DeviceIndex, StreamId, const CapturePlace&) { return Status::not_supported; }

}  // namespace poolalloc
