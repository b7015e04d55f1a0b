// ModelDriver: time, streams, events and captures. Memory is in model_driver.cpp.
#include <algorithm>
#include <cinttypes>

#include "core/errors.h"
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

void ModelDriver::begin_capture(DeviceIndex device, StreamId stream) {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  if (d.stream(stream).capture != 0) throw UsageError("model driver: stream is being captured already");
  d.stream(stream).capture = ++d.captures_begun;
  d.captures_active.fetch_add(1);
}

void ModelDriver::end_capture(DeviceIndex device, StreamId stream) {
  Device& d = at(device);
  std::lock_guard guard(d.mutex);
  std::uint64_t capture = d.stream(stream).capture;
  if (capture == 0) throw UsageError("model driver: stream is not being captured");
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

Status ModelDriver::record_event(DeviceIndex device, EventHandle event, StreamId stream) {
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

Status ModelDriver::query_event(DeviceIndex device, EventHandle event) {
  Entry entry = enter(DriverCall::query_event, device);
  if (entry.stopped()) return entry.status;
  Device::Event* found = entry->events.find(event);
  if (found == nullptr) return misuse(DriverCall::query_event, device, "event %#" PRIx64 " is not a live event", event);
  if (entry->capturing() || found->capture != 0)
    return misuse(DriverCall::query_event, device, "event %#" PRIx64 " %s", event,
                  found->capture != 0 ? "belongs to a capture" : "is queried during a capture");
  return found->completion <= entry->now ? Status::ok : Status::not_ready;
}

Status ModelDriver::synchronize_event(DeviceIndex device, EventHandle event) {
  Entry entry = enter(DriverCall::synchronize_event, device);
  if (entry.stopped()) return entry.status;
  Device::Event* found = entry->events.find(event);
  if (found == nullptr)
    return misuse(DriverCall::synchronize_event, device, "event %#" PRIx64 " is not a live event", event);
  if (entry->capturing() || found->capture != 0)
    return misuse(DriverCall::synchronize_event, device, "event %#" PRIx64 " %s", event,
                  found->capture != 0 ? "belongs to a capture" : "is waited for during a capture");
  entry->wait_until(found->completion);
  return Status::ok;
}

Status ModelDriver::stream_wait_event(DeviceIndex device, StreamId stream, EventHandle event) {
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

Status ModelDriver::synchronize_device(DeviceIndex device) {
  Entry entry = enter(DriverCall::synchronize_device, device);
  if (entry.stopped()) return entry.status;
  if (entry->capturing()) return misuse(DriverCall::synchronize_device, device, "during a capture");
  for (const Device::Stream& stream : entry->streams) entry->wait_until(stream.busy_until);
  return Status::ok;
}

Status ModelDriver::stream_capturing(DeviceIndex device, StreamId stream, bool* capturing) {
  Entry entry = enter(DriverCall::stream_capturing, device);
  if (entry.stopped()) return entry.status;
  *capturing = entry->capturing() && entry->stream(stream).capture != 0;
  return Status::ok;
}

}  // namespace poolalloc
