// The one gate of a process that knows which CUDA graphs are being captured, and who may do meanwhile what a capture
// forbids. Routing requests to a pool is not capturing, and does not pass here.
//
// What CUDA forbids, and to whom: waiting for a device of which a stream is captured, everybody, in every mode; asking
// or awaiting an event that was recorded into a capture, everybody; any other event, the threads that capture, unless
// they are in the relaxed mode, as the driver's calls are made. So there are two tokens, which the forbidden calls of
// driver.h take as an argument:
//   MayAsk      the thread captures nothing: it may ask and await events
//   NoCapture   nothing is captured, and nothing that is announced begins as long as the token lives: its holder may
//               also wait for a device and unmap
// A placement unmaps under its heap's lock without a token, if captures() is false under that lock; who announces a
// capture takes the locks of all heaps afterwards (Allocator::begin_capture).
//
// torch announces its captures (begin, end). Others do not: before the device is waited for, the streams known here are
// asked; and no event is recorded on a stream without asking it (record_behind).
//
//   tokens_ > 0 and captures_ > 0 only while begin() waits for the tokens to go
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "core/base/types.h"
#include "driver/driver.h"

namespace poolalloc {

class MayAsk {
 public:
  // For those who drive a driver with no allocator on it: tests and measurements.
  static MayAsk unchecked() { return {}; }

 protected:
  MayAsk() = default;

 private:
  friend class CaptureGate;
};

class NoCapture final : public MayAsk {
 public:
  static NoCapture unchecked() { return NoCapture(nullptr); }
  NoCapture(NoCapture&& other) noexcept : count_(std::exchange(other.count_, nullptr)) {}
  NoCapture& operator=(NoCapture&&) = delete;
  ~NoCapture() {
    if (count_ != nullptr) count_->fetch_sub(1);
  }

 private:
  friend class CaptureGate;
  explicit NoCapture(std::atomic<int>* count) : count_(count) {}

  std::atomic<int>* count_;  // of the gate's tokens; null: unchecked
};

class CaptureGate {
 public:
  explicit CaptureGate(Driver& driver) : driver_(driver) {}
  CaptureGate(const CaptureGate&) = delete;
  CaptureGate& operator=(const CaptureGate&) = delete;

  // This thread captures on the device, or is about to. Returns when nobody holds a NoCapture. Not for one who does.
  void begin(DeviceIndex device);
  // Any thread; nothing if no capture was announced on the device.
  void end(DeviceIndex device);
  // Whether a capture is announced.
  bool captures() const { return captures_.load(std::memory_order_relaxed) != 0; }

  std::optional<MayAsk> may_ask() const;
  std::optional<NoCapture> no_capture();
  // To wait for the device: known streams are asked, too.
  std::optional<NoCapture> no_capture(DeviceIndex device);

  // A stream that requests come from, until it is forgotten as often as it was named.
  void know(Stream stream);
  void forget(Stream stream);

  // Whether memory that a captured graph has given back may be used again in it, once the capture has joined the
  // streams that used it: torch's setting graph_capture_record_stream_reuse.
  void set_reuse(bool reuse) { reuse_.store(reuse, std::memory_order_relaxed); }
  bool reuse() const { return reuse_.load(std::memory_order_relaxed); }

  // Records an event behind the stream's work so far. not_ready: the stream is being captured, by whomever, and the
  // event would tell nothing of it.
  Status record_behind(Stream stream, EventHandle event);

 private:
  struct Capture {
    DeviceIndex device;
    std::uintptr_t thread;
  };

  Driver& driver_;
  std::atomic<int> captures_{0}, tokens_{0};
  std::atomic<bool> reuse_{false};
  mutable std::mutex mutex_;  // of what follows; taken last
  std::vector<Capture> under_way_;
  std::vector<Stream> known_;
};

}  // namespace poolalloc
