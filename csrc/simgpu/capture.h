// Stream capture: how work on streams becomes a graph, and which calls a capture forbids.
//
// A capture begins on one stream and spreads to streams that wait for its events. It fails ("is invalidated") when
// something happens that cannot be part of a graph; then only ending it helps. Errors follow the rules CUDA documents.
//
// The simulator's lock guards everything.
#pragma once

#include <cstdint>
#include <vector>

#include "simgpu/cuda_abi.h"
#include "simgpu/errors.h"
#include "simgpu/graph.h"
#include "simgpu/stream.h"

namespace poolalloc::simgpu {

struct Capture {
  std::uint64_t id;
  int mode;  // abi::CaptureMode
  std::uint64_t thread;
  std::uint64_t graph;
  std::uint64_t origin;                     // stream handles
  std::vector<std::uint64_t> participants;  // origin among them
  bool invalidated = false;
  bool owns_graph = true;  // false: captured into a graph of the caller's
};

// A number of this thread that no other thread has or had.
std::uint64_t this_thread_number();

Error begin_capture(Stream& stream, int mode, Graph* into, std::vector<std::uint64_t> dependencies);
// Ends the capture on its origin; the graph is null when it failed.
Error end_capture(Stream& stream, Graph** graph, Deferred& deferred);

// Adds a node behind what the stream captured so far.
GraphNode& capture_node(Stream& stream, abi::NodeType type);

// Marks a capture as failed and returns `error`.
Error invalidate(Capture& capture, Error error);
Error invalidate_capture_of(Event& event, Error error);

// A wait on an event that was recorded in a capturing stream: the stream joins the capture, or gains dependencies.
Error capture_wait(Stream& stream, Event& event);

// Before work on a stream: its capture must not have failed, and the legacy stream must not cut through one.
Error check_capture_for_work(Stream& stream);
// Before waiting for a stream, or asking whether it is done.
Error check_capture_for_sync(Stream& stream);
// Before a call that is "potentially unsafe" during capture (cudaMalloc, cudaEventQuery, ...).
Error check_unsafe_call();
// Before waiting for all of a device, which is forbidden in every mode while one of its streams is captured.
Error check_device_sync(const Device& device);
// Before a call that synchronizes with the legacy stream (cudaMemcpy, ...).
Error check_legacy_sync();

}  // namespace poolalloc::simgpu
