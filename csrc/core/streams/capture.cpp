#include "core/streams/capture.h"

#include <algorithm>

#include "core/base/lock.h"

namespace poolalloc {

namespace {

std::uintptr_t this_thread() { return reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer()); }

// Handles that mean the legacy default stream: to enqueue anything there spoils the capture of a stream that
// synchronizes with it.
bool legacy(StreamId stream) { return stream <= 1; }

}  // namespace

// Both sides write their own word before they read the other's, so one of them sees the other.
void CaptureGate::begin(DeviceIndex device) {
  {
    const std::lock_guard guard(mutex_);
    under_way_.push_back({device, this_thread()});
  }
  captures_.fetch_add(1);
  wait_until([this] { return tokens_.load() == 0; });
}

void CaptureGate::end(DeviceIndex device) {
  const std::lock_guard guard(mutex_);
  const auto here = [&](const Capture& each) { return each.device == device; };
  auto found = std::find_if(under_way_.rbegin(), under_way_.rend(),
                            [&](const Capture& each) { return here(each) && each.thread == this_thread(); });
  if (found == under_way_.rend()) found = std::find_if(under_way_.rbegin(), under_way_.rend(), here);
  if (found == under_way_.rend()) return;
  under_way_.erase(std::next(found).base());
  captures_.fetch_sub(1);
}

std::optional<MayAsk> CaptureGate::may_ask() const {
  if (captures()) {
    const std::lock_guard guard(mutex_);
    const auto own = [](const Capture& each) { return each.thread == this_thread(); };
    if (std::any_of(under_way_.begin(), under_way_.end(), own)) return std::nullopt;
  }
  return MayAsk();
}

std::optional<NoCapture> CaptureGate::no_capture() {
  tokens_.fetch_add(1);
  NoCapture token(&tokens_);
  if (captures_.load() != 0) return std::nullopt;  // and the token is gone
  return token;
}

std::optional<NoCapture> CaptureGate::no_capture(DeviceIndex device) {
  std::optional<NoCapture> token = no_capture();
  if (!token) return token;
  std::vector<Stream> asked;
  {
    const std::lock_guard guard(mutex_);
    asked = known_;
  }
  for (const Stream stream : asked) {
    bool capturing = false;
    if (stream.device == device && driver_.stream_capturing(device, stream.id, &capturing) == Status::ok && capturing)
      return std::nullopt;
  }
  return token;
}

void CaptureGate::know(Stream stream) {
  const std::lock_guard guard(mutex_);
  known_.push_back(stream);
}

void CaptureGate::forget(Stream stream) {
  const std::lock_guard guard(mutex_);
  if (const auto found = std::find(known_.begin(), known_.end(), stream); found != known_.end()) known_.erase(found);
}

// Asked on both sides of the record: a capture may begin in between, and an event recorded into it must never be asked.
Status CaptureGate::record_behind(Stream stream, EventHandle event) {
  const auto capturing = [&] {
    bool yes = false;
    const Status status = driver_.stream_capturing(stream.device, stream.id, &yes);
    return status == Status::ok && yes ? Status::not_ready : status;
  };
  if (const Status status = capturing(); status != Status::ok) return status;
  if (const Status status = driver_.record_event(stream.device, event, stream.id); status != Status::ok) return status;
  return legacy(stream.id) ? Status::ok : capturing();
}

}  // namespace poolalloc
