// Several observers where the engine knows one. Written rarely, under the allocator's mutex; read without a lock.
#pragma once

#include <array>
#include <atomic>

#include "core/base/errors.h"
#include "core/recording/observer.h"

namespace poolalloc {

class ObserverList final : public Observer {
 public:
  // One that is there already stays. Throws UsageError if there are kMost.
  void add(Observer& observer) {
    std::atomic<Observer*>* room = nullptr;
    for (auto& slot : slots_) {
      if (slot.load(std::memory_order_relaxed) == &observer) return;
      if (room == nullptr && slot.load(std::memory_order_relaxed) == nullptr) room = &slot;
    }
    if (room == nullptr) throw UsageError("too many observe the allocator");
    room->store(&observer, std::memory_order_release);
  }
  void remove(Observer& observer) {
    for (auto& slot : slots_)
      if (slot.load(std::memory_order_relaxed) == &observer) slot.store(nullptr, std::memory_order_release);
  }
  bool empty() const {
    for (auto& slot : slots_)
      if (slot.load(std::memory_order_relaxed) != nullptr) return false;
    return true;
  }

  void pages_came(const HeapId& heap, Address address, Bytes bytes) override {
    each([&](Observer& one) { one.pages_came(heap, address, bytes); });
  }
  void pages_left(const HeapId& heap, Address address, Bytes bytes) override {
    each([&](Observer& one) { one.pages_left(heap, address, bytes); });
  }
  void spare_changed(DeviceIndex device, Bytes before, Bytes now) override {
    each([&](Observer& one) { one.spare_changed(device, before, now); });
  }
  void free_completed(const BlockInfo& block) override {
    each([&](Observer& one) { one.free_completed(block); });
  }

 private:
  static constexpr std::size_t kMost = 4;

  template <typename Tell>
  void each(Tell tell) const {
    for (auto& slot : slots_)
      if (Observer* observer = slot.load(std::memory_order_acquire)) tell(*observer);
  }

  std::array<std::atomic<Observer*>, kMost> slots_{};
};

}  // namespace poolalloc
