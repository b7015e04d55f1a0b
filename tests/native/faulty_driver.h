// A driver that refuses calls when it is told to: one call, or all from one on, as a device does after an illegal
// memory access. What it refuses it does not do. For programs of one thread; others may use it while it refuses
// nothing.
#pragma once

#include <cstdint>

#include "forwarding_driver.h"

class FaultyDriver final : public ForwardingDriver {
 public:
  using ForwardingDriver::ForwardingDriver;

  // The `nth` next call (1: the next one) is refused as `failed`; with `ever` every later one, too.
  void fail(std::uint64_t nth, bool ever = false) {
    left_ = nth;
    ever_ = ever;
  }
  void mend() { left_ = 0; }
  // Whether a call was refused, ever; and whether all are from now on.
  bool failed() const { return failed_; }
  bool lost() const { return failed_ && ever_; }
  // Whether this thread is in a call of the driver: what happens there is not the allocator's doing.
  static bool inside() { return inside_; }

  Status memory_info(Device d, Bytes* free, Bytes* total) override {
    return pass([&] { return to.memory_info(d, free, total); });
  }
  Status reserve(Device d, Bytes n, Bytes alignment, Address* a) override {
    return pass([&] { return to.reserve(d, n, alignment, a); });
  }
  Status release(Device d, Address a, Bytes n) override {
    return pass([&] { return to.release(d, a, n); });
  }
  Status create(Device d, Bytes n, Handle* handle) override {
    return pass([&] { return to.create(d, n, handle); });
  }
  Status destroy(Device d, Handle handle) override {
    return pass([&] { return to.destroy(d, handle); });
  }
  Status create_stream(Device d, Stream* s) override {
    return pass([&] { return to.create_stream(d, s); });
  }
  Status pin_host(Device d, Bytes n, void** host) override {
    return pass([&] { return to.pin_host(d, n, host); });
  }
  Status copy_to_host(Device d, void* host, Address a, Bytes n, Stream s) override {
    return pass([&] { return to.copy_to_host(d, host, a, n, s); });
  }
  Status copy_from_host(Device d, Address a, const void* host, Bytes n, Stream s) override {
    return pass([&] { return to.copy_from_host(d, a, host, n, s); });
  }
  Status map(Device d, Address a, Bytes n, Handle handle) override {
    return pass([&] { return to.map(d, a, n, handle); });
  }
  Status allow_access(Device d, Address a, Bytes n, poolalloc::DeviceSet p) override {
    return pass([&] { return to.allow_access(d, a, n, p); });
  }
  Status unmap(Device d, Address a, Bytes n) override {
    return pass([&] { return to.unmap(d, a, n); });
  }
  Status allocate_segment(Device d, Bytes n, Address* a) override {
    return pass([&] { return to.allocate_segment(d, n, a); });
  }
  Status free_segment(Device d, Address a) override {
    return pass([&] { return to.free_segment(d, a); });
  }
  Status create_event(Device d, Event* event) override {
    return pass([&] { return to.create_event(d, event); });
  }
  Status destroy_event(Device d, Event event) override {
    return pass([&] { return to.destroy_event(d, event); });
  }
  Status record_event(Device d, Event event, Stream s) override {
    return pass([&] { return to.record_event(d, event, s); });
  }
  Status stream_capturing(Device d, Stream s, bool* yes) override {
    return pass([&] { return to.stream_capturing(d, s, yes); });
  }
  Status query_event(const MayAsk& token, Device d, Event event) override {
    return pass([&] { return to.query_event(token, d, event); });
  }
  Status synchronize_event(const MayAsk& token, Device d, Event event) override {
    return pass([&] { return to.synchronize_event(token, d, event); });
  }
  Status synchronize_device(const NoCapture& token, Device d) override {
    return pass([&] { return to.synchronize_device(token, d); });
  }

 private:
  template <typename Call>
  Status pass(Call call) {
    if (refuses()) return Status::failed;
    inside_ = true;
    const Status status = call();
    inside_ = false;
    return status;
  }
  bool refuses() {
    if (left_ == 0 || (left_ > 1 && left_-- > 1)) return false;
    if (!ever_) left_ = 0;
    failed_ = true;
    return true;
  }

  std::uint64_t left_ = 0;  // calls until one is refused, that one included; 0: none
  bool ever_ = false;
  bool failed_ = false;
  static inline thread_local bool inside_ = false;
};
