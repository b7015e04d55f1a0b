// Streams, events and their completion; see stream.h.
#include "simgpu/stream.h"

#include <algorithm>
#include <chrono>

#include "simgpu/capture.h"
#include "simgpu/operations.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

// Merges what `from` lies behind into `into`.
void merge(Clock& into, const Clock& from) {
  for (const auto& [timeline, position] : from) {
    std::uint64_t& known = into[timeline];
    known = std::max(known, position);
  }
}

void complete(const Clock& clock) {
  for (const auto& [timeline, position] : clock) timeline->completed = std::max(timeline->completed, position);
}

// The legacy stream and blocking streams of one device wait for each other.
void order_with_legacy(Stream& stream) {
  if (stream.legacy) {
    sim().streams.for_each([&](Stream& other) {
      if (other.device == stream.device && other.blocking()) {
        stream.clock[other.timeline] = other.timeline->enqueued;
        merge(stream.clock, other.clock);
      }
    });
  } else if (stream.blocking()) {
    Stream& legacy = *stream.device->legacy;
    stream.clock[legacy.timeline] = legacy.timeline->enqueued;
  }
}

void advance(Stream& stream) {
  ++stream.timeline->enqueued;
  stream.timeline->last_launch = stream.device->launches;
  if (sim().config.lag > 0) order_with_legacy(stream);
}

bool complete_by_launches(const Device& device, std::uint64_t launch) {
  return device.launches >= launch + sim().config.lag;
}

bool is_complete(const Event& event) {
  return !event.recorded || event.timeline->completed >= event.position ||
         complete_by_launches(*event.timeline->device, event.launch);
}

void complete_event(Event& event) {
  if (!event.recorded) return;
  event.timeline->completed = std::max(event.timeline->completed, event.position);
  complete(event.clock);
}

template <class Table>
auto* resolve(Table& table, const void* handle, const char* what, const char* destroyed_kind, const char* unknown_kind,
              const char* caller) {
  auto* found = table.find(handle);
  if (!found) {
    const bool destroyed = table.state(handle) == HandleState::kDestroyed;
    violation(destroyed ? destroyed_kind : unknown_kind, "%s: %s %p %s", caller, what, handle,
              destroyed ? "was destroyed" : "was never created");
  }
  return found;
}

}  // namespace

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Stream* create_stream(Device& device, unsigned flags, int priority) {
  auto [handle, stream] = sim().streams.create();
  stream->device = &device;
  stream->flags = flags;
  stream->priority = priority;
  stream->id = ++sim().last_stream_id;
  stream->handle = handle;
  stream->timeline = std::make_shared<Timeline>(Timeline{.device = &device});
  return stream;
}

Event* create_event(Device& device, unsigned flags) {
  auto [handle, event] = sim().events.create();
  event->device = &device;
  event->flags = flags;
  event->handle = handle;
  return event;
}

Stream* resolve_stream(const void* handle, const char* caller) {
  if (handle == nullptr || handle == abi::kStreamLegacy) return current_device().legacy;
  if (handle == abi::kStreamPerThread) {
    Device& device = current_device();
    std::uint64_t& own = thread_state().per_thread_streams[device.index];
    if (own == 0) own = create_stream(device, abi::kStreamDefault, 0)->handle;
    return sim().streams.find(own);
  }
  return resolve(sim().streams, handle, "stream", "use_after_destroy_stream", "unknown_stream", caller);
}

Event* resolve_event(const void* handle, const char* caller) {
  return resolve(sim().events, handle, "event", "use_after_destroy_event", "unknown_event", caller);
}

Error enqueue(Stream& stream, abi::NodeType type, std::function<void()> action) {
  if (const Error error = check_capture_for_work(stream); error != kSuccess) return error;
  if (stream.capture) {
    capture_node(stream, type).action = std::move(action);
    return kSuccess;
  }
  run_work(stream, type, action);
  return kSuccess;
}

void run_work(Stream& stream, abi::NodeType type, const std::function<void()>& action) {
  if (type == abi::kNodeKernel) {
    ++stream.device->launches;
    note_launch(stream);
  }
  advance(stream);
  if (action) action();
}

Error record_event(Event& event, Stream& stream, unsigned flags) {
  if (event.device != stream.device) return kInvalidHandle;
  if (const Error error = check_capture_for_work(stream); error != kSuccess) return error;
  if (stream.capture) {
    if ((flags & abi::kEventRecordExternal) != 0) {
      GraphNode& node = capture_node(stream, abi::kNodeEventRecord);
      node.event = event.handle;
      return kSuccess;
    }
    event.captured = true;
    event.capture = stream.capture;
    event.captured_dependencies = stream.dependencies;
    return kSuccess;
  }
  advance(stream);
  event.captured = false;
  event.recorded = true;
  event.timeline = stream.timeline;
  event.position = stream.timeline->enqueued;
  event.launch = stream.device->launches;
  if (sim().config.lag > 0) event.clock = stream.clock;
  event.time_ns = now_ns();
  event.first_poll_ns = 0;
  return kSuccess;
}

Error wait_event(Stream& stream, Event& event, unsigned flags) {
  if (event.captured) return capture_wait(stream, event);
  if (const Error error = check_capture_for_work(stream); error != kSuccess) return error;
  if (stream.capture) {
    if ((flags & abi::kEventWaitExternal) != 0) {
      capture_node(stream, abi::kNodeWaitEvent).event = event.handle;
      return kSuccess;
    }
    if (!event.recorded) return kSuccess;
    return invalidate(*stream.capture, kCaptureIsolation);
  }
  if (!event.recorded) return kSuccess;
  advance(stream);
  if (sim().config.lag > 0) {
    merge(stream.clock, event.clock);
    std::uint64_t& known = stream.clock[event.timeline];
    known = std::max(known, event.position);
  }
  return kSuccess;
}

Error query_event(Event& event, const char* caller) {
  if (event.captured) return invalidate_capture_of(event, kCapturedEvent);
  if (const Error error = check_unsafe_call(); error != kSuccess) return error;
  if (is_complete(event)) return kSuccess;
  const std::uint64_t launches = event.timeline->device->launches;
  const std::int64_t now = now_ns();
  if (event.first_poll_ns == 0 || event.poll_launch != launches) {
    event.first_poll_ns = now;
    event.poll_launch = launches;
  } else if (now - event.first_poll_ns > static_cast<std::int64_t>(sim().config.patience_seconds) * 1'000'000'000) {
    // A device would get there in time; so does this one, or the program would hang.
    say("%s: an event was polled for %llu s with no launch that would complete it (POOLALLOC_SIM_LAG); completing it",
        caller, static_cast<unsigned long long>(sim().config.patience_seconds));
    complete_event(event);
    return kSuccess;
  }
  return kNotReady;
}

Error synchronize_event(Event& event) {
  if (event.captured) return invalidate_capture_of(event, kCapturedEvent);
  if (const Error error = check_unsafe_call(); error != kSuccess) return error;
  complete_event(event);
  trim_pools_to_threshold(*event.device);
  return kSuccess;
}

Error elapsed_ms(const Event& start, const Event& end, float* milliseconds) {
  if (!start.recorded || !end.recorded || ((start.flags | end.flags) & abi::kEventDisableTiming) != 0 ||
      start.device != end.device) {
    return kInvalidHandle;
  }
  if (!is_complete(start) || !is_complete(end)) return kNotReady;
  // The clock of the host stands in for the device's; real ones tick every half microsecond.
  const std::int64_t elapsed = end.time_ns - start.time_ns;
  constexpr std::int64_t kTickNs = 500;
  const std::int64_t shown = elapsed >= 0 ? std::max(elapsed, kTickNs) : std::min(elapsed, -kTickNs);
  *milliseconds = static_cast<float>(static_cast<double>(shown) / 1e6);
  return kSuccess;
}

Error query_stream(Stream& stream) {
  if (const Error error = check_capture_for_sync(stream); error != kSuccess) return error;
  const Timeline& timeline = *stream.timeline;
  const bool pending =
      timeline.enqueued > timeline.completed && !complete_by_launches(*stream.device, timeline.last_launch);
  return pending ? kNotReady : kSuccess;
}

Error synchronize_stream(Stream& stream) {
  if (const Error error = check_capture_for_sync(stream); error != kSuccess) return error;
  if (sim().config.lag > 0) order_with_legacy(stream);
  stream.timeline->completed = stream.timeline->enqueued;
  complete(stream.clock);
  trim_pools_to_threshold(*stream.device);
  return kSuccess;
}

void complete_device(Device& device) {
  sim().streams.for_each([&](Stream& stream) {
    if (stream.device != &device) return;
    stream.timeline->completed = stream.timeline->enqueued;
    complete(stream.clock);
  });
  trim_pools_to_threshold(device);
}

}  // namespace poolalloc::simgpu
