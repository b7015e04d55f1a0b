#include "core/device/ladder.h"

#include <algorithm>
#include <string_view>

#include "core/device/oom_callbacks.h"
#include "core/device/out_of_memory.h"

namespace poolalloc {

namespace {

// The driver's words for its code say what is not so.
std::string without_reason(std::string text) {
  constexpr std::string_view kReason = ": out of memory";
  if (text.ends_with(kReason)) text.resize(text.size() - kReason.size());
  return text;
}

}  // namespace

Address Ladder::climb(Status status) {
  status_ = status;
  if (status_ == Status::failed) raise();
  const Holdings& holdings = device_.shared_.holdings;
  if (bytes_ > std::max(holdings.limit(), static_cast<Bytes>(holdings.reserved().current))) {  // nothing to gain
    status_ = Status::out_of_memory;
    raise();
  }
  device_.retries_.fetch_add(1, std::memory_order_relaxed);
  turn_ = std::unique_lock<Lock>(device_.gathering_, std::try_to_lock);
  if (!turn_.owns_lock()) {
    turn_.lock();
    if (try_again()) return served_after(LadderRung::waiting);
  }
  // Not the mappings of a pool, where a graph's replays may come through them.
  if (status_ == Status::not_supported && heap_.pool() == PoolId{} && unmap_own())
    return served_after(LadderRung::unmapping);
  // What was gained may have gone to another thread, whose own idle memory is then still there: so again, until there
  // is nothing left to gain.
  do {
    gained_ = false;
    if (release_kept()) return served_after(LadderRung::releasing);
    if (steal()) return served_after(LadderRung::stealing);
    if (call_back()) return served_after(LadderRung::callbacks);
    if (wait()) return served_after(LadderRung::waiting);
    if (trim()) return served_after(LadderRung::trimming);
    if (borrow()) return served_after(LadderRung::lending);
  } while (gained_);
  device_.shared_.destroy_spare();  // made in vain
  return_to_sources();
  // Somebody may have freed memory meanwhile: then the driver has not refused any.
  Bytes free_bytes = 0, total_bytes = 0;
  if (status_ == Status::out_of_memory &&
      device_.shared_.driver.memory_info(device_.shared_.device, &free_bytes, &total_bytes) == Status::ok &&
      !is_short(free_bytes, total_bytes) && try_again())
    return served_after(LadderRung::trimming);
  raise();
}

Address Ladder::served_after(LadderRung rung) {
  device_.served_after_[static_cast<std::size_t>(rung)].fetch_add(1, std::memory_order_relaxed);
  return address_;
}

bool Ladder::try_again() {
  status_ = heap_.allocate(bytes_, &address_);
  while (status_ == Status::not_ready) {  // for the allocator of a pool, which is the user's code
    turn_.unlock();
    status_ = heap_.ask();
    turn_.lock();
    if (status_ == Status::ok) status_ = heap_.allocate(bytes_, &address_);
  }
  return status_ == Status::ok;
}

void Ladder::return_to_sources() {
  turn_.unlock();
  device_.return_to_sources();
  turn_.lock();
}

bool Ladder::unmap_own() {
  for (const std::uint32_t idle_frames_too : {0u, ~0u}) {
    heap_.reclaim_waiting(idle_frames_too);
    if (try_again()) return true;
  }
  return false;
}

// Only as much as is missing, and tries again if that was anything.
bool Ladder::take(Heap& other, Wait wait) {
  const auto frames = static_cast<std::uint32_t>(bytes_ / kPageBytes + 2);
  const Bytes gained = wait == Wait::yes ? other.reclaim_waiting(frames) : other.reclaim_completed(frames);
  device_.stolen_.fetch_add(gained / kPageBytes, std::memory_order_relaxed);
  if (gained == 0) return false;
  gained_ = true;
  device_.shared_.release_misfits(heap_.segmented());
  if (other.asks()) return_to_sources();
  return try_again();
}

// Its own first: they may be used at once. In steps, since what is kept was meant to be.
bool Ladder::release_kept() {
  while (heap_.release_kept(bytes_ / 8 + 1) != 0)
    if (try_again()) return true;
  if (!device_.shared_.gate.may_ask()) return false;  // whether another heap's stream is done with it
  const DeviceHeap::Visit visit = device_.reclaimable_heaps();
  for (Heap* other : visit.heaps) {
    if (other == &heap_ || other->release_kept(bytes_) == 0) continue;
    gained_ = true;  // for those rungs that wait
    if (take(*other, Wait::no)) return true;
  }
  return false;
}

bool Ladder::steal() {
  const DeviceHeap::Visit visit = device_.reclaimable_heaps();
  for (Heap* other : visit.heaps) {
    if (other == &heap_) continue;
    while (other->poll_pending() != 0) {
    }
    if (take(*other, Wait::no)) return true;
  }
  return false;
}

// Called round by round for as long as they say that they freed something and less is live than ever before.
bool Ladder::call_back() {
  if (called_back_) return false;
  called_back_ = true;
  const OomCallbacks::List callbacks = device_.callbacks_.to_call();
  Bytes least = device_.live_bytes();
  bool freed = !callbacks.empty();
  while (freed) {
    freed = false;
    for (const auto& callback : callbacks) {
      turn_.unlock();
      device_.called_back_.fetch_add(1, std::memory_order_relaxed);
      freed |= OomCallbacks::call(*callback, device_.shared_.device, bytes_);
      turn_.lock();
      if (try_again() || steal()) return true;
    }
    const Bytes live = device_.live_bytes();
    freed &= live < least;
    least = std::min(least, live);
  }
  return false;
}

bool Ladder::wait() {
  const DeviceHeap::Visit visit = device_.reclaimable_heaps();
  const auto wait_for_frees = [this](Heap& heap) {
    const bool finished = heap.wait_pending() != 0;
    gained_ |= finished;
    return finished;
  };
  if (wait_for_frees(heap_) && try_again()) return true;
  for (Heap* other : visit.heaps)
    if (other != &heap_ && take(*other, Wait::yes)) return true;
  for (Heap* other : visit.heaps)
    if (other != &heap_ && wait_for_frees(*other) && take(*other, Wait::yes)) return true;
  return false;
}

// Mappings that block addresses go too; and the device may then have room where another process took it meanwhile.
bool Ladder::trim() {
  device_.trim_to(0, Wait::yes);
  return_to_sources();
  return try_again();
}

bool Ladder::borrow() {
  const DeviceHeap::Visit lenders = device_.lending_heaps();
  return std::any_of(lenders.heaps.begin(), lenders.heaps.end(),
                     [this](Heap* lender) { return lender != &heap_ && take(*lender, Wait::yes); });
}

// Whether the device, or what poolalloc may hold of it, has no room for the request. What a device keeps for itself is
// not exactly known, so only plenty of room counts. A pool's own allocator has reasons of its own, and whole
// allocations must be in one piece.
bool Ladder::is_short(Bytes free_bytes, Bytes total_bytes) const {
  if (heap_.segmented()) return true;
  const Holdings& holdings = device_.shared_.holdings;
  const Bytes limit = holdings.limit(), reserved = static_cast<Bytes>(holdings.reserved().current);
  const auto lacks = [&](Bytes has, Bytes uses) {
    uses += 2 * kPageBytes;
    return has < uses || has - uses < bytes_;
  };
  return lacks(limit, reserved) || lacks(free_bytes, total_bytes / 64);
}

// Only a device that is short of memory is said to be. One that is lost, as after an illegal memory access, completes
// nothing and so never frees anything; and a driver may refuse a mapping, or memory that is there, for reasons of its
// own. Those texts do not have the words by which programs choose a smaller batch.
void Ladder::raise() {
  const std::string on_device = " on device " + std::to_string(device_.shared_.device);
  OutOfMemoryFigures figures;
  const std::string refusal = device_.shared_.driver.last_error();
  if (status_ == Status::failed || device_.shared_.driver.memory_info(device_.shared_.device, &figures.free_bytes,
                                                                      &figures.total_bytes) != Status::ok)
    throw DriverError("the driver refused memory for " + format_bytes(bytes_) + on_device + ": " +
                      device_.shared_.driver.last_error());
  if (status_ == Status::out_of_memory && !is_short(figures.free_bytes, figures.total_bytes))
    throw DriverError("the driver refused memory for " + format_bytes(bytes_) + on_device + ", of which " +
                      format_bytes(figures.free_bytes) + " are free: " + without_reason(refusal) +
                      ". A smaller request would be refused, too. Look for the reason in the driver, or in the limits "
                      "of this machine or virtual GPU; the option segments does without mapped memory.");
  device_.out_of_memory_.fetch_add(1, std::memory_order_relaxed);
  figures.asked = bytes_;
  figures.stream = heap_.stream();
  figures.pool = heap_.pool();
  figures.capturing = !device_.shared_.gate.may_ask();
  figures.addresses_missing = status_ == Status::not_supported;
  figures.address_space = device_.options_.address_space;
  figures.device_name = device_.info_.name;
  figures.stats = device_.stats();
  throw OutOfMemory(describe(figures));
}

}  // namespace poolalloc
