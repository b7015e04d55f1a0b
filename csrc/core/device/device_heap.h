// Everything poolalloc holds on one device: a heap for every stream, more for every private pool, and the page supply
// they share. What happens when memory runs out is in ladder.h. device_heap.cpp: heaps, and memory that moves between
// them; device_pools.cpp: private pools; device_sleep.cpp: regions, asleep and awake; device_stats.cpp: figures and
// checks.
//
//   reserved = sum over heaps of (resident + idle) + spare pages of the supply
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/backing/address_table.h"
#include "core/base/lock.h"
#include "core/base/stats.h"
#include "core/device/oom_callbacks.h"
#include "core/device/open_memory.h"
#include "core/device/regions.h"
#include "core/heap/heap.h"
#include "core/options/options.h"
#include "core/sleep/contents.h"
#include "core/sleep/copier.h"
#include "driver/driver.h"

namespace poolalloc {

// Whoever sends requests to a pool may be about to capture a graph into it.
enum class Routing {
  announced,  // captures are announced (begin_capture)
  suspect     // they are not: until a request from a stream that is not captured says otherwise, one is expected
};

class DeviceHeap {
 public:
  // Throws DriverError if the device cannot be used.
  DeviceHeap(Driver& driver, DeviceIndex device, AddressTable& addresses, CaptureGate& gate,
             const OomCallbacks& callbacks, const Options& options, const Plan* plan = nullptr);
  ~DeviceHeap();
  DeviceHeap(const DeviceHeap&) = delete;
  DeviceHeap& operator=(const DeviceHeap&) = delete;

  // Throws OutOfMemory, DriverError.
  [[gnu::always_inline]] Address allocate(Bytes bytes, StreamId stream) {
    if (shared_.routes.load(std::memory_order_acquire) != 0) [[unlikely]]
      return allocate_while_routing(bytes, stream);
    Heap& heap = heap_of(stream);
    Address address = 0;
    const Status status = heap.allocate(bytes, &address, Heap::Source::back);
    if (status == Status::ok) [[likely]]
      return address;
    return find_memory(heap, bytes, status);
  }

  // Gives pages back to the device that nobody uses, until at most `target` bytes are held; kept blocks last. Only what
  // completed work has left; with Wait::yes the rest of the work is waited for. Returns the bytes.
  Bytes trim(Bytes target, Wait wait);
  Bytes empty_cache(PoolId pool);
  // What the background thread does now and then; `now` is in nanoseconds. Waits for nothing.
  void tend(std::uint64_t now);
  // Calls `wake` when the reserve falls short. Before the first allocation.
  void watch_reserve(std::function<void()> wake) {
    if (options_.reserve_ahead != 0) shared_.page_supply.watch_spare(options_.reserve_ahead, std::move(wake));
  }
  // What may be held is the smaller of the two. Idle pages beyond it go at once, as far as that takes no wait.
  void set_fraction(double fraction);
  double fraction() const { return fraction_; }
  void set_limit(Bytes bytes);
  Bytes limit() const { return limit_; }
  // What may be held of `total` bytes; a limit of 0 is none.
  static Bytes limit_of(double fraction, Bytes limit, Bytes total);

  // A thread allocates in a region from now on, until leave_region: requests must be looked at.
  void enter_region();
  void leave_region();
  // Gives the physical memory of a region to the device, after all work has completed. `room` is what the contents may
  // take of the host's memory. On any error nothing has changed. Throws UsageError (a capture is going on, or something
  // keeps it awake, or there is no room), DriverError. Nothing if it is asleep, or has nothing here.
  void sleep(RegionId region, Keep keep, const std::string& folder, Bytes room);
  // Memory for all of these at the same addresses, with the contents that were kept. On any error they are as asleep as
  // before. out_of_memory: so many bytes are *missing; find_room_to_wake, and try again. Throws UsageError (a capture
  // is going on), DriverError.
  Status wake(const std::vector<RegionId>& regions, Bytes* missing);
  // What has been tried for memory to wake with.
  struct Effort {
    int rung = 0;
    Bytes least_live = ~Bytes{0};  // after a round of callbacks
  };
  // What the ladder does for a request, with no heap of its own: idle memory that completed work has left; callbacks,
  // for as long as they say that they freed something and less is live than ever before; idle memory that has to be
  // waited for. Under no lock. False when there is nothing left to try.
  bool find_room_to_wake(Bytes missing, Effort* effort);
  [[noreturn]] void raise_no_room_to_wake(const std::vector<RegionId>& regions);
  // Lets go of what need not be kept of regions that are asleep, since blocks there were freed.
  void forget_freed();
  bool asleep(RegionId region) const;
  bool has_region(RegionId region) const;
  // How a region that is asleep was put to sleep.
  std::optional<std::pair<Keep, std::string>> kept(RegionId region) const;
  // Contents of sleeping memory that wait in the host's memory.
  Bytes host_bytes() const;
  void append_regions(std::vector<RegionStats>& stats) const;
  // What regions are called, and what to call, without a lock, when a request comes to one that is asleep. Before the
  // first allocation.
  void set_regions(const Regions* names, std::function<void(RegionId)> on_asleep) {
    region_names_ = names;
    asleep_request_ = std::move(on_asleep);
  }

  void begin_allocate_to_pool(PoolId pool, std::function<bool(StreamId)> filter, Routing routing);
  void end_allocate_to_pool(PoolId pool);
  // Returns when every driver call that a heap makes under its lock is over, and every turn of those that take memory.
  void let_calls_finish();
  // With a source, which the first user brings, the pool has segments of that.
  void retain_pool(PoolId pool, std::shared_ptr<SegmentSource> source);
  int pool_users(PoolId pool) const;
  // From now on new memory comes in segments, or in mapped pages again. What is there stays as it is, and serves again
  // when requests are for its kind. Nothing where there are segments alone.
  void want_segments(bool wanted);
  void set_pool_use_on_oom(PoolId pool, bool use);
  void set_pool_no_split(PoolId pool);
  void expect_graphs(PoolId pool);
  void release_pool(PoolId pool);
  std::vector<BlockInfo> blocks(PoolId pool) const;
  // `address` lies in a heap of this device.
  SharedBlock share(Address address);
  bool export_pieces(const SharedBlock& block, std::size_t first, std::size_t count, std::vector<SharedPiece>* pieces);
  OpenMemory& open_memory() { return open_memory_; }
  PoolCheckpoint checkpoint(PoolId pool);
  CheckpointDelta restore(const PoolCheckpoint& checkpoint);
  DeviceLayout layout() const;
  // What the option prealloc asks for. Throws OutOfMemory. Before the first allocation, and after observe.
  void preallocate();
  void observe(Observer* observer) { shared_.observer.store(observer, std::memory_order_release); }

  // Everything mapped now, for a peer that the driver knows of already. Throws DriverError.
  void allow_access_to_mapped(DeviceIndex peer);

  DeviceStats stats() const;
  void reset_peaks();
  void validate() const;

 private:
  friend class Ladder;

  // Streams are never forgotten, so looking one up is a walk along an append-only list.
  struct StreamEntry {
    StreamEntry(StreamId stream, const StreamPlan* plan, StreamEntry* next) : stream(stream), plan(plan), next(next) {}
    const StreamId stream;
    const StreamPlan* const plan;      // of the heap with mapped pages
    std::atomic<Heap*> heap{nullptr};  // where requests go now
    StreamEntry* const next;
    Heap* heaps[2] = {};  // with pages that are mapped, with segments
  };
  struct PrivatePool {
    PoolId id;
    int users = 0;
    bool routing = false;
    bool suspected = false;  // of being captured into: announced as such at the gate
    bool use_on_oom = false;
    bool quiet = false;  // no user, and what those before had enqueued has completed
    std::function<bool(StreamId)> filter;
    std::shared_ptr<SegmentSource> source;      // null: it has memory of the device like any other
    std::unique_ptr<SegmentSupply> own_supply;  // of the source
    bool no_split = false;
    bool captured = false;  // requests came from captured streams: graphs may touch what is idle
    RegionId region = 0;
    std::vector<std::unique_ptr<Heap>> heaps;
    int visitors = 0;
  };
  // What is known of a region besides its pools.
  struct RegionMemory {
    bool asleep = false;
    Keep keep = Keep::nothing;
    std::string folder;
    std::unique_ptr<Contents> contents;  // null: none were kept
    std::vector<SavedBytes> saved;       // by address
  };
  // A heap of a region that is asleep, and what it is to be mapped to.
  struct Sleeper {
    Heap* heap;
    std::vector<Residency::Alias> aliases;
  };
  // Heaps to look at without the mutex: those of private pools are not destroyed as long as this lives.
  class Visit {
   public:
    // The heaps of the pools that `chosen` accepts, and those of streams if wanted.
    template <typename Chosen>
    Visit(const DeviceHeap& device, bool of_streams, Chosen chosen);
    ~Visit();
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;

    const DeviceHeap& device;
    std::vector<Heap*> heaps;
    std::vector<PrivatePool*> pools;
  };

  static constexpr std::size_t kBuckets = 64;
  static std::size_t bucket_of(StreamId stream) { return (stream >> 4 ^ stream >> 12) % kBuckets; }

  Heap& heap_of(StreamId stream) {
    for (StreamEntry* entry = buckets_[bucket_of(stream)].load(std::memory_order_acquire); entry != nullptr;
         entry = entry->next)
      if (entry->stream == stream) return *entry->heap.load(std::memory_order_acquire);
    return make_heap(stream);
  }
  [[gnu::noinline]] Heap& make_heap(StreamId stream);
  Heap& choose_heap(StreamEntry& entry);
  [[gnu::noinline]] Address allocate_while_routing(Bytes bytes, StreamId stream);
  Address allocate_in(RegionId region, Heap& heap, Bytes bytes);
  Heap& heap_of_pool(PrivatePool& pool, StreamId stream);
  Heap& heap_of_region(RegionId region, StreamId stream);
  // Idle memory of a pool in use goes where it is needed, unless a graph may touch it or it is the pool's own.
  static bool keeps_idle(const PrivatePool& pool) {
    return !pool.quiet && (pool.captured || pool.suspected || pool.source != nullptr);
  }
  Visit heaps_of_region(RegionId region) const;
  void unmap_all(const std::vector<Sleeper>& sleepers);
  Status make_handles(std::vector<Sleeper>& sleepers, Bytes* missing);
  std::vector<SavedBytes> wanted_of(const RegionMemory& memory, RegionId region) const;
  void destroy_handles(const std::vector<Sleeper>& sleepers);
  bool graphs_may_touch(const Heap& heap) const;
  bool graphs_will_touch(const Heap& heap) const;
  void map_all(std::vector<Sleeper>& sleepers);
  void unmap(const std::vector<Residency::Alias>& aliases, std::size_t count);
  void look_for_capture(PrivatePool& pool, StreamId stream);
  // Under mutex_.
  template <typename Do>
  void each_heap(Do act) const {
    for (auto& heap : stream_heaps_) act(*heap);
    for (auto& pool : pools_)
      for (auto& heap : pool->heaps) act(*heap);
  }
  void several_heaps_from_now();
  std::unique_ptr<Heap> new_heap(StreamId stream, PoolId pool, const PoolTraits& traits,
                                 const StreamPlan* plan = nullptr);
  [[gnu::noinline]] Address find_memory(Heap& heap, Bytes bytes, Status status);
  void collect_from_others(Heap& heap);
  enum class KeptBlocks { stay, go };
  Bytes trim_to(Bytes target, Wait wait, KeptBlocks kept = KeptBlocks::go);
  Bytes release_kept(const std::vector<Heap*>& heaps, Bytes bytes);
  void tend_heaps(std::uint64_t now);
  void poll_pending(const std::vector<Heap*>& heaps) const;
  void trim_aged(std::uint64_t now);
  Bytes live_bytes() const;
  Visit all_heaps() const;
  Visit reclaimable_heaps() const;
  Visit heaps_of_pool_in_use(PoolId pool) const;
  Visit lending_heaps() const;
  PrivatePool* find_pool(PoolId pool) const;
  PrivatePool& add_user(PoolId pool);
  void collect_released();
  // What pools with a source have spare goes back there. Under no lock, for it is the user's code. Returns the bytes.
  Bytes return_to_sources();
  Visit pools_with_sources() const;
  Bytes spare_of_pools() const;
  void await_released();
  void drop_empty_pools() noexcept;
  void destroy_heap(std::unique_ptr<Heap> heap);
  DeviceStats sum_of_heaps() const;
  void keep_peaks();
  void keep_totals(const Heap& heap);
  void apply_limit();
  template <typename Change>
  void change_limit(Change change);

  const StreamPlan* plan_for(StreamId stream) const;

  const Options options_;
  const Plan* const plan_;  // null: none
  AddressTable& addresses_;
  const OomCallbacks& callbacks_;
  const DeviceInfo info_;
  DeviceShared shared_;
  OpenMemory open_memory_{shared_};
  std::atomic<double> fraction_;
  std::atomic<Bytes> limit_;  // 0: none
  std::atomic<StreamEntry*> buckets_[kBuckets] = {};
  std::atomic<std::uint64_t> retries_{0}, out_of_memory_{0}, stolen_{0}, called_back_{0};
  std::atomic<std::uint64_t> served_after_[kLadderRungs] = {};
  // The turn of those that take memory out of heaps: what another thread has on its way out would be missing, and a
  // request refused that fits. They wait for the device anyway, so they may wait for each other, before all other
  // locks; a request that finds memory never does.
  mutable Lock gathering_;
  std::uint64_t next_aging_ = 0;  // guarded by it, as what follows
  Bytes spare_before_ = 0;        // at the last look
  mutable std::mutex mutex_;      // of what follows; taken before a heap's lock, never after
  std::vector<std::unique_ptr<Heap>> stream_heaps_;
  std::vector<std::unique_ptr<StreamEntry>> entries_;
  bool segments_wanted_;  // for new memory
  std::vector<std::unique_ptr<PrivatePool>> pools_;
  std::atomic<int> routing_pools_{0};
  std::unordered_map<RegionId, RegionMemory> regions_;
  const Regions* region_names_ = nullptr;
  std::function<void(RegionId)> asleep_request_;
  DeviceStats gone_;  // what heaps counted that are no more, and the highest sums of peaks while they were there
};

template <typename Chosen>
DeviceHeap::Visit::Visit(const DeviceHeap& device, bool of_streams, Chosen chosen) : device(device) {
  std::lock_guard guard(device.mutex_);
  if (of_streams)
    for (auto& heap : device.stream_heaps_) heaps.push_back(heap.get());
  for (auto& pool : device.pools_) {
    if (!chosen(*pool)) continue;
    pools.push_back(pool.get());
    for (auto& heap : pool->heaps) heaps.push_back(heap.get());
  }
  for (PrivatePool* pool : pools) ++pool->visitors;
}

}  // namespace poolalloc
