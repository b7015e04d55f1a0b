// Bugs to be found: a driver that does not do what it is asked, and says that it did. Between an allocator and
// PageChecker it makes an allocator that is sound behave as one would that has the bug.
#pragma once

#include <mutex>
#include <set>

#include "forwarding_driver.h"

enum class Lie {
  none,
  completed_early,    // an event is said to be complete when it is asked for
  waits_for_nothing,  // a synchronization returns at once
  skips_abroad,       // an event behind another device's work is not recorded
  wrong_stream,       // an event is recorded behind another stream's work
  not_mapped,         // a page is left without mapping
  no_access,          // a page is mapped and left without access
  wrong_page,         // the page that is mapped is the one mapped before, at another address
  stale_mapping,      // an unmapping is skipped: what was mapped there stays
  unmaps_neighbour,   // an unmapping takes another mapping with it
  destroys_mapped,    // making a page gives the one mapped last back to the device
};

class LyingDriver final : public ForwardingDriver {
 public:
  LyingDriver(poolalloc::Driver& driver, Lie lie) : ForwardingDriver(driver), lie_(lie) {}

  // Nothing is said falsely until then.
  void start() { started_ = true; }

  Status query_event(const MayAsk& token, Device device, Event event) override {
    return lying(Lie::completed_early) ? Status::ok : to.query_event(token, device, event);
  }
  Status synchronize_event(const MayAsk& token, Device device, Event event) override {
    return lying(Lie::waits_for_nothing) ? Status::ok : to.synchronize_event(token, device, event);
  }
  Status synchronize_device(const NoCapture& token, Device device) override {
    return lying(Lie::waits_for_nothing) ? Status::ok : to.synchronize_device(token, device);
  }
  Status record_event(Device device, Event event, Stream stream) override {
    if (lying(Lie::skips_abroad) && device != 0) return Status::ok;
    return to.record_event(device, event, lying(Lie::wrong_stream) ? stream + 1 : stream);
  }
  Status create(Device device, Bytes bytes, Handle* handle) override {
    std::lock_guard guard(mutex_);
    const Status status = to.create(device, bytes, handle);
    if (lying(Lie::destroys_mapped) && last_mapped_ != 0 && destroyed_.insert(last_mapped_).second)
      to.destroy(device, last_mapped_);
    return status;
  }
  Status destroy(Device device, Handle handle) override {
    std::lock_guard guard(mutex_);
    if (destroyed_.erase(handle) != 0) return Status::ok;
    return to.destroy(device, handle);
  }
  Status map(Device device, Address address, Bytes bytes, Handle handle) override {
    std::lock_guard guard(mutex_);
    if (stale_.erase(address) != 0) return Status::ok;
    if (lying(Lie::not_mapped)) {
      missing_.insert(address);
      return Status::ok;
    }
    if (lying(Lie::wrong_page) && last_mapped_ != 0) {
      const Status status = to.map(device, address, bytes, last_mapped_);
      if (status == Status::ok) return status;  // refused if the page is gone by now
    }
    last_mapped_ = handle;
    const Status status = to.map(device, address, bytes, handle);
    if (status == Status::ok) mapped_.insert(address);
    return status;
  }
  Status allow_access(Device device, Address address, Bytes bytes, poolalloc::DeviceSet peers) override {
    std::lock_guard guard(mutex_);
    if (lying(Lie::no_access)) return Status::ok;
    const Status status = to.allow_access(device, address, bytes, peers);
    return missing_.empty() ? status : Status::ok;
  }
  Status unmap(Device device, Address address, Bytes bytes) override {
    std::lock_guard guard(mutex_);
    if (missing_.erase(address) != 0) return Status::ok;
    if (lying(Lie::stale_mapping)) {
      stale_.insert(address);
      return Status::ok;
    }
    mapped_.erase(address);
    if (lying(Lie::unmaps_neighbour) && !mapped_.empty()) {
      missing_.insert(*mapped_.begin());
      to.unmap(device, *mapped_.begin(), bytes);
      mapped_.erase(mapped_.begin());
    }
    return to.unmap(device, address, bytes);
  }

 private:
  bool lying(Lie lie) const { return lie == lie_ && started_; }

  const Lie lie_;
  bool started_ = false;
  std::mutex mutex_;  // of what follows
  Handle last_mapped_ = 0;
  std::set<Handle> destroyed_;
  std::set<Address> mapped_, missing_, stale_;
};
