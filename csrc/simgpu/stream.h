// Streams and events: what was enqueued, what has completed, and how the lag mode decides it.
//
// Nothing runs on a device, so work completes when the simulator says so. With lag 0 that is at once. With lag N an
// event completes once N further launches were counted on its device, or once something that the host waited for lies
// behind it: its stream, its device, an event recorded later in stream order. Order between streams (waits on events,
// the legacy stream) is kept in clocks: for each timeline, the position this stream is known to lie behind.
//
// Not here: capture (capture.h). The simulator's lock guards everything.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "simgpu/cuda_abi.h"
#include "simgpu/errors.h"

namespace poolalloc::simgpu {

struct Capture;
struct Device;

// The order of one stream's work; outlives the stream while events point into it.
struct Timeline {
  Device* device;
  std::uint64_t enqueued = 0;     // operations so far
  std::uint64_t completed = 0;    // completed <= enqueued: known complete because the host waited
  std::uint64_t last_launch = 0;  // the device's launch count when the last operation was enqueued
};
using Clock = std::map<std::shared_ptr<Timeline>, std::uint64_t>;

struct Stream {
  Device* device;
  unsigned flags;
  int priority;
  std::uint64_t id;
  std::uint64_t handle = 0;
  bool legacy = false;
  std::shared_ptr<Timeline> timeline;
  Clock clock;
  std::shared_ptr<Capture> capture;
  std::vector<std::uint64_t> dependencies;  // while capturing: the nodes the next one will follow
  std::vector<void*> dependencies_out;      // what cudaStreamGetCaptureInfo last handed out

  bool blocking() const { return !legacy && (flags & abi::kStreamNonBlocking) == 0; }
};

struct Event {
  Device* device;
  unsigned flags;
  std::uint64_t handle = 0;
  bool recorded = false;
  std::shared_ptr<Timeline> timeline;  // of the last record
  std::uint64_t position = 0;
  std::uint64_t launch = 0;  // the device's launch count at the record
  Clock clock;
  std::int64_t time_ns = 0;
  std::int64_t first_poll_ns = 0;  // of the polls since the last launch; 0 if there was none
  std::uint64_t poll_launch = 0;
  bool captured = false;  // last recorded in a capturing stream
  std::weak_ptr<Capture> capture;
  std::vector<std::uint64_t> captured_dependencies;
};

// A new stream on a device.
Stream* create_stream(Device& device, unsigned flags, int priority);
Event* create_event(Device& device, unsigned flags);

// The stream a caller means: the legacy stream for 0 and 1, this thread's own for 2. Null, with one violation, for a
// handle that is not live.
Stream* resolve_stream(const void* handle, const char* caller);
Event* resolve_event(const void* handle, const char* caller);

// Enqueues work: runs `action` now, or keeps it in the graph that the stream is capturing. Kernels have no action.
Error enqueue(Stream& stream, abi::NodeType type, std::function<void()> action);
// The part of enqueue that is left when nothing is captured.
void run_work(Stream& stream, abi::NodeType type, const std::function<void()>& action);

Error record_event(Event& event, Stream& stream, unsigned flags);
Error wait_event(Stream& stream, Event& event, unsigned flags);
// kSuccess or kNotReady.
Error query_event(Event& event, const char* caller);
Error synchronize_event(Event& event);
Error elapsed_ms(const Event& start, const Event& end, float* milliseconds);

Error query_stream(Stream& stream);
Error synchronize_stream(Stream& stream);
void complete_device(Device& device);

std::int64_t now_ns();

}  // namespace poolalloc::simgpu
