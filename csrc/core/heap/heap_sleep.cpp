// Memory of a heap that goes back to the device while its addresses, and what lives there, stay. Who waits for the
// device, copies contents and calls the driver: device/device_sleep.cpp.
#include "core/heap/heap.h"

namespace poolalloc {

void Heap::begin_sleep() {
  const Guard guard(*this);
  asleep_ = true;
  bin_limit_ = 0;  // so that every request comes to place_specially
  set_attention();
}

void Heap::cancel_sleep() {
  const Guard guard(*this);
  asleep_ = false;
  bin_limit_ = slab_limit_;
  set_attention();
}

const char* Heap::kept_awake_by() const {
  const Guard guard(*this);
  if (residency_ == nullptr) return "its memory comes in whole segments, which have no addresses of their own";
  if (!names_.empty()) return "a tensor in it is shared with another process";
  if (uses_.pending() != 0) return "work of another stream still uses a freed tensor of it";
  if (!residency_->can_sleep()) return "the driver refuses to unmap part of it";
  return nullptr;
}

std::vector<Residency::Alias> Heap::aliases() const {
  const Guard guard(*this);
  return residency_->aliases();
}

std::vector<MemoryRun> Heap::live_runs() const {
  const Guard guard(*this);
  std::vector<MemoryRun> runs;
  residency_->visit_live([&](Address address, Bytes bytes) { runs.push_back({address, bytes}); });
  return runs;
}

void Heap::fell_asleep() {
  const Guard guard(*this);
  residency_->fall_asleep();
  loans_moved();
}

void Heap::prepare_to_wake(bool graphs) {
  const Guard guard(*this);
  if (!graphs) residency_->forget_idle();
}

void Heap::woken(const std::vector<Residency::Alias>& aliases) {
  {
    const Guard guard(*this);
    residency_->wake_up(aliases);
    asleep_ = false;
    bin_limit_ = slab_limit_;
    set_attention();
    loans_moved();
  }
}

}  // namespace poolalloc
