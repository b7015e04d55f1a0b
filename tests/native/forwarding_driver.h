// A driver that passes every call on: the base of those that watch or disturb a few of them.
#pragma once

#include <string>

#include "core/streams/capture.h"
#include "driver/driver.h"

class ForwardingDriver : public poolalloc::Driver {
 public:
  using Bytes = poolalloc::Bytes;
  using Address = poolalloc::Address;
  using Status = poolalloc::Status;
  using Device = poolalloc::DeviceIndex;
  using Event = poolalloc::EventHandle;
  using Stream = poolalloc::StreamId;
  using Handle = poolalloc::PhysicalHandle;
  using MayAsk = poolalloc::MayAsk;
  using NoCapture = poolalloc::NoCapture;

  explicit ForwardingDriver(poolalloc::Driver& driver) : to(driver) {}

  int device_count() override { return to.device_count(); }
  Status device_info(Device d, poolalloc::DeviceInfo* info) override { return to.device_info(d, info); }
  Status open_device(Device d, poolalloc::DeviceInfo* info) override { return to.open_device(d, info); }
  Status memory_info(Device d, Bytes* free, Bytes* total) override { return to.memory_info(d, free, total); }
  Status reserve(Device d, Bytes n, Bytes alignment, Address* a) override { return to.reserve(d, n, alignment, a); }
  Status release(Device d, Address a, Bytes n) override { return to.release(d, a, n); }
  Status create(Device d, Bytes n, Handle* handle) override { return to.create(d, n, handle); }
  Status destroy(Device d, Handle handle) override { return to.destroy(d, handle); }
  Status map(Device d, Address a, Bytes n, Handle handle) override { return to.map(d, a, n, handle); }
  Status allow_access(Device d, Address a, Bytes n, poolalloc::DeviceSet p) override {
    return to.allow_access(d, a, n, p);
  }
  Status unmap(Device d, Address a, Bytes n) override { return to.unmap(d, a, n); }
  Status export_handle(Device d, Handle handle, int* file) override { return to.export_handle(d, handle, file); }
  Status import_handle(Device d, int file, Handle* handle) override { return to.import_handle(d, file, handle); }
  Status allocate_segment(Device d, Bytes n, Address* a) override { return to.allocate_segment(d, n, a); }
  Status free_segment(Device d, Address a) override { return to.free_segment(d, a); }
  Status create_event(Device d, Event* event) override { return to.create_event(d, event); }
  Status destroy_event(Device d, Event event) override { return to.destroy_event(d, event); }
  Status record_event(Device d, Event event, Stream s) override { return to.record_event(d, event, s); }
  Status query_event(const MayAsk& token, Device d, Event event) override { return to.query_event(token, d, event); }
  Status synchronize_event(const MayAsk& token, Device d, Event event) override {
    return to.synchronize_event(token, d, event);
  }
  Status stream_wait_event(Device d, Stream s, Event event) override { return to.stream_wait_event(d, s, event); }
  Status synchronize_device(const NoCapture& token, Device d) override { return to.synchronize_device(token, d); }
  Status stream_device(Stream s, Device* d) override { return to.stream_device(s, d); }
  Status stream_capturing(Device d, Stream s, bool* yes) override { return to.stream_capturing(d, s, yes); }
  Status capture_place(Device d, Stream s, poolalloc::CapturePlace* place) override {
    return to.capture_place(d, s, place);
  }
  Status capture_behind(Device d, Stream s, const poolalloc::CapturePlace& place) override {
    return to.capture_behind(d, s, place);
  }
  Status create_stream(Device d, Stream* s) override { return to.create_stream(d, s); }
  Status destroy_stream(Device d, Stream s) override { return to.destroy_stream(d, s); }
  Status pin_host(Device d, Bytes n, void** host) override { return to.pin_host(d, n, host); }
  Status unpin_host(Device d, void* host) override { return to.unpin_host(d, host); }
  Status copy_to_host(Device d, void* host, Address a, Bytes n, Stream s) override {
    return to.copy_to_host(d, host, a, n, s);
  }
  Status copy_from_host(Device d, Address a, const void* host, Bytes n, Stream s) override {
    return to.copy_from_host(d, a, host, n, s);
  }
  std::string last_error() const override { return to.last_error(); }

 protected:
  poolalloc::Driver& to;
};
