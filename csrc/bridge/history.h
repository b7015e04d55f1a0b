// The history of memory that torch.cuda.memory._record_memory_history switches on: a ring of entries for each device,
// the stacks of live blocks, marks and annotations, and those who follow every entry (trace trackers). Not for the
// state at one moment: snapshot.cpp.
//
// What happens to blocks is recorded by the bridge, around the core's call and under no lock: an allocation after it, a
// free before it, so the entries of an address are in order whichever threads they come from. What happens to pages and
// to frees that had to wait the core tells (Observer), under its locks; the ring's own lock is the innermost. Stacks
// are gathered before the core is called, since that may take the interpreter's lock, and trackers are called after it.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/cuda/CUDAMacros.h>
#include <c10/util/ApproximateClock.h>

#include <array>
#include <atomic>
#include <bitset>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "bridge/decision.h"
#include "core/recording/observer.h"

namespace poolalloc::bridge {

using c10::DeviceIndex;
using c10::CachingDeviceAllocator::AllocatorTraceTracker;
using c10::CachingDeviceAllocator::AnnotationEntry;
using c10::CachingDeviceAllocator::CreateContextFn;
using c10::CachingDeviceAllocator::RecordContext;
using c10::CachingDeviceAllocator::TraceEntry;

// The newest so many of all that were added.
template <typename T>
class Ring {
 public:
  void keep(std::size_t most) {
    most_ = std::max<std::size_t>(most, 1);
    while (entries_.size() > most_) entries_.pop_front();
  }
  void add(T entry) {
    if (entries_.size() == most_) entries_.pop_front();
    entries_.push_back(std::move(entry));
  }
  void clear() { entries_.clear(); }
  std::vector<T> all() const { return {entries_.begin(), entries_.end()}; }

 private:
  std::deque<T> entries_;
  std::size_t most_ = 1;
};

class History final : public Observer {
 public:
  using Context = std::shared_ptr<c10::GatheredContext>;

  // The one of this process. Never destroyed.
  static History& instance();
  // Whether blocks must be told of. The one question of the hot path.
  static bool on() { return on_.load(std::memory_order_relaxed); }
  bool recording() const { return recording_.load(std::memory_order_relaxed); }

  void record(bool enabled, CreateContextFn recorder, std::size_t max_entries, RecordContext when, bool clear,
              const std::vector<std::string>& skip_actions);
  void follow(AllocatorTraceTracker tracker);

  // Around a call of the core on this thread: its stack is that of all entries meanwhile, and trackers are called at
  // its end. `least` is from which setting on stacks are wanted for what is going to happen.
  class Cause {
   public:
    explicit Cause(RecordContext least);
    ~Cause();
    Cause(const Cause&) = delete;
    Cause& operator=(const Cause&) = delete;

   private:
    Context context_;
    const Context* outer_;
  };

  // Inside a Cause.
  void allocated(const void* memory);
  void freeing(const void* memory);
  // A pool was brought back to an earlier state: the blocks it had, those that went and those that came.
  void restored(const std::vector<BlockInfo>& before, std::vector<Address> gone, std::vector<Address> came);
  void out_of_memory(DeviceIndex device, StreamId stream, Bytes asked, Bytes free_bytes);
  void annotated(const void* memory, const std::string& text);
  void snapshot_taken(DeviceIndex device, PoolId pool, Bytes active);
  void annotation(DeviceIndex device, const std::vector<std::pair<std::string, std::string>>& pairs);

  // Of the calling thread.
  static void push_compile_context(std::string name);
  static void pop_compile_context();
  static void set_metadata(std::string text);
  static std::string metadata();

  // The stack of the live or pending block at this address; null if none was gathered.
  Context context_of(DeviceIndex device, Address address) const;
  std::unordered_map<Address, Context> contexts(DeviceIndex device) const;
  // Oldest first, with the times as torch's snapshots have them: microseconds since 1970.
  std::vector<TraceEntry> entries(DeviceIndex device) const;
  std::vector<AnnotationEntry> annotations() const;

  void pages_came(const HeapId& heap, Address address, Bytes bytes) override;
  void pages_left(const HeapId& heap, Address address, Bytes bytes) override;
  void spare_changed(poolalloc::DeviceIndex device, Bytes before, Bytes now) override;
  void free_completed(const BlockInfo& block) override;

 private:
  // Each device has a lock of its own; nothing is called under it.
  struct Device {
    mutable std::mutex mutex;
    Ring<TraceEntry> entries;
    std::unordered_map<Address, Context> contexts;
  };
  static constexpr std::size_t kDevices = C10_COMPILE_TIME_MAX_GPUS;
  using Trackers = std::vector<AllocatorTraceTracker>;

  void add(TraceEntry::Action action, const HeapId& heap, Address address, Bytes bytes, Context context);
  void freeing(const BlockInfo& block);
  void add_block(TraceEntry::Action action, const BlockInfo& block, Context context);
  bool forget_context(DeviceIndex device, Address address);
  Context cause() const;
  void deliver();
  void decide();

  History() = default;

  static inline constinit std::atomic<bool> on_{false};
  std::atomic<bool> recording_{false};
  std::atomic<CreateContextFn> recorder_{nullptr};
  std::atomic<RecordContext> when_{RecordContext::NEVER};
  std::atomic<std::uint32_t> skipped_{0};  // bit a: entries of action a are not kept
  std::atomic<std::int64_t> held_contexts_{0};
  std::atomic<bool> followed_{false};
  std::array<Device, kDevices> devices_;

  Decision decision_;         // whether to be told at all; never under another lock
  mutable std::mutex mutex_;  // guards what follows; innermost too
  Ring<AnnotationEntry> annotations_;
  std::shared_ptr<const Trackers> trackers_;
  std::vector<TraceEntry> undelivered_;
  bool delivering_ = false;
  std::unique_ptr<c10::ApproximateClockToUnixTimeConverter> clock_;
};

}  // namespace poolalloc::bridge
