// Stream capture; see capture.h.
#include "simgpu/capture.h"

#include <algorithm>
#include <atomic>
#include <unordered_set>
#include <utility>

#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

// True if every node that a participant would go on from is behind the origin's.
bool all_joined(const Capture& capture, const Stream& origin) {
  std::unordered_set<std::uint64_t> reached;
  std::vector<std::uint64_t> open = origin.dependencies;
  while (!open.empty()) {
    const std::uint64_t node = open.back();
    open.pop_back();
    if (!reached.insert(node).second) continue;
    if (const GraphNode* found = sim().nodes.find(node)) {
      open.insert(open.end(), found->dependencies.begin(), found->dependencies.end());
    }
  }
  for (const std::uint64_t handle : capture.participants) {
    const Stream* stream = sim().streams.find(handle);
    if (!stream) continue;
    for (const std::uint64_t node : stream->dependencies) {
      if (!reached.contains(node)) return false;
    }
  }
  return true;
}

Error check_legacy_implicit(Device& device) {
  Error result = kSuccess;
  for (const auto& capture : sim().captures) {
    const bool blocking = std::any_of(capture->participants.begin(), capture->participants.end(), [&](auto handle) {
      const Stream* stream = sim().streams.find(handle);
      return stream && stream->device == &device && stream->blocking();
    });
    if (blocking) result = invalidate(*capture, kCaptureImplicit);
  }
  return result;
}

}  // namespace

std::uint64_t this_thread_number() {
  static std::atomic<std::uint64_t> next{1};
  thread_local const std::uint64_t number = next.fetch_add(1);
  return number;
}

Error begin_capture(Stream& stream, int mode, Graph* into, std::vector<std::uint64_t> dependencies) {
  if (stream.legacy) return kCaptureUnsupported;
  if (stream.capture) return kIllegalState;
  if (mode < abi::kCaptureGlobal || mode > abi::kCaptureRelaxed) return kInvalidValue;
  auto capture = std::make_shared<Capture>();
  capture->id = ++sim().last_capture_id;
  capture->mode = mode;
  capture->thread = this_thread_number();
  capture->owns_graph = into == nullptr;
  capture->graph = (into ? into : create_graph())->handle;
  capture->origin = stream.handle;
  capture->participants = {stream.handle};
  stream.capture = capture;
  stream.dependencies = std::move(dependencies);
  sim().captures.push_back(std::move(capture));
  return kSuccess;
}

Error end_capture(Stream& stream, Graph** graph, Deferred& deferred) {
  *graph = nullptr;
  if (!stream.capture) return kIllegalState;
  const std::shared_ptr<Capture> capture = stream.capture;
  if (capture->mode != abi::kCaptureRelaxed && capture->thread != this_thread_number()) return kCaptureWrongThread;
  if (capture->origin != stream.handle) return invalidate(*capture, kCaptureUnmatched);
  Error error = kSuccess;
  if (capture->invalidated) {
    error = kCaptureInvalidatedError;
  } else if (!all_joined(*capture, stream)) {
    error = kCaptureUnjoined;
  }
  for (const std::uint64_t handle : capture->participants) {
    if (Stream* participant = sim().streams.find(handle)) {
      participant->capture.reset();
      participant->dependencies.clear();
    }
  }
  std::erase(sim().captures, capture);
  Graph* captured = sim().graphs.find(capture->graph);
  if (error == kSuccess) {
    *graph = captured;
  } else if (capture->owns_graph && captured) {
    destroy_graph(*captured, deferred);
  }
  return error;
}

GraphNode& capture_node(Stream& stream, abi::NodeType type) {
  GraphNode& node = add_node(*sim().graphs.find(stream.capture->graph), type, stream.dependencies);
  stream.dependencies = {node.handle};
  return node;
}

Error invalidate(Capture& capture, Error error) {
  capture.invalidated = true;
  return error;
}

Error invalidate_capture_of(Event& event, Error error) {
  if (const auto capture = event.capture.lock()) invalidate(*capture, error);
  return error;
}

Error capture_wait(Stream& stream, Event& event) {
  const std::shared_ptr<Capture> capture = event.capture.lock();
  const bool running =
      capture && std::find(sim().captures.begin(), sim().captures.end(), capture) != sim().captures.end();
  if (!running) return kCapturedEvent;
  if (capture->invalidated) return kCaptureInvalidatedError;
  if (stream.legacy) return invalidate(*capture, kCaptureImplicit);
  if (!stream.capture) {
    stream.capture = capture;
    stream.dependencies.clear();
    capture->participants.push_back(stream.handle);
  } else if (stream.capture != capture) {
    invalidate(*stream.capture, kCaptureMerge);
    return invalidate(*capture, kCaptureMerge);
  }
  for (const std::uint64_t node : event.captured_dependencies) {
    if (std::find(stream.dependencies.begin(), stream.dependencies.end(), node) == stream.dependencies.end()) {
      stream.dependencies.push_back(node);
    }
  }
  return kSuccess;
}

Error check_capture_for_work(Stream& stream) {
  if (sim().captures.empty()) return kSuccess;
  if (stream.capture) return stream.capture->invalidated ? kCaptureInvalidatedError : kSuccess;
  return stream.legacy ? check_legacy_implicit(*stream.device) : kSuccess;
}

Error check_capture_for_sync(Stream& stream) {
  if (sim().captures.empty()) return kSuccess;
  if (stream.capture) return invalidate(*stream.capture, kCaptureUnsupported);
  return stream.legacy ? check_legacy_implicit(*stream.device) : kSuccess;
}

Error check_unsafe_call() {
  const int mode = thread_state().capture_mode;
  if (sim().captures.empty() || mode == abi::kCaptureRelaxed) return kSuccess;
  const std::uint64_t thread = this_thread_number();
  Error result = kSuccess;
  for (const auto& capture : sim().captures) {
    const bool own = capture->thread == thread && capture->mode != abi::kCaptureRelaxed;
    const bool global = mode == abi::kCaptureGlobal && capture->mode == abi::kCaptureGlobal;
    if (own || global) result = invalidate(*capture, kCaptureUnsupported);
  }
  return result;
}

Error check_device_sync(const Device& device) {
  Error result = kSuccess;
  for (const auto& capture : sim().captures) {
    const bool here = std::any_of(capture->participants.begin(), capture->participants.end(), [&](auto handle) {
      const Stream* stream = sim().streams.find(handle);
      return stream && stream->device == &device;
    });
    if (here) result = invalidate(*capture, kCaptureUnsupported);
  }
  return result != kSuccess ? result : check_unsafe_call();
}

Error check_legacy_sync() {
  if (sim().captures.empty()) return kSuccess;
  if (const Error error = check_legacy_implicit(current_device()); error != kSuccess) return error;
  return check_unsafe_call();
}

}  // namespace poolalloc::simgpu
