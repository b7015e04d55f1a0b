// The face of core: memory for (bytes, device, stream), on every device. plugin, python and replay call only this.
//
// All calls may come from any thread. Nothing here waits for the device except empty_cache, trim with `wait`,
// release_pool and the out-of-memory ladder of allocate, and those hold no lock that a request takes that finds memory.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/backing/segment_source.h"
#include "core/base/errors.h"
#include "core/base/stats.h"
#include "core/base/types.h"
#include "core/device/oom_callbacks.h"
#include "core/device/regions.h"
#include "core/heap/sharing.h"
#include "core/options/options.h"
#include "core/placement/checkpoint.h"
#include "core/plans/plan.h"
#include "core/recording/event_log.h"
#include "core/recording/layout.h"
#include "core/recording/observer_list.h"
#include "core/sleep/contents.h"
#include "driver/driver.h"

namespace poolalloc {

class AddressTable;
class CaptureGate;
class Caretaker;
class DeviceHeap;
class CountingDriver;

class POOLALLOC_API Allocator {
 public:
  // `driver` must outlive the allocator. Throws ConfigError. Touches no device before the first allocation on it.
  // Requests of a program that does what the plan says are served from it; others as without it.
  Allocator(Driver& driver, const Options& options, const Plan* plan = nullptr);
  ~Allocator();
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;

  // Returns memory of at least `bytes` (a multiple of kGranularity is set aside), or 0 for 0 bytes.
  // Throws OutOfMemory, DriverError, UsageError (no such device).
  [[gnu::hot]] Address allocate(Bytes bytes, DeviceIndex device, StreamId stream);
  // Gives a block back; 0 is ignored. It may be handed out again at once on its own stream, and after the completion of
  // what the recorded streams had enqueued until now. Throws UsageError if `address` is not the start of a live block.
  [[gnu::hot]] void free(Address address);
  // `stream`, of whichever device, uses the block too. Throws UsageError if `address` is not the start of a live block.
  void record_stream(Address address, Stream stream);

  // The device of a stream, if its handle tells.
  std::optional<DeviceIndex> device_of(StreamId stream);

  // The block that contains `address`: its start, and its rounded size in *bytes if not null. 0 if not ours.
  Address base_allocation(Address address, Bytes* bytes = nullptr) const;
  bool owns(Address address) const;

  // The block that contains `address`, if it is ours.
  std::optional<BlockInfo> block(Address address) const;
  // The start of the whole allocation that a live block lies in, where memory comes in those; else 0.
  Address whole_allocation(Address address) const;
  // Where everything on a device lies; empty for one not used yet.
  DeviceLayout layout(DeviceIndex device) const;
  // From now on, on every device. Who is told no more may still hear of what is under way.
  void add_observer(Observer& observer);
  void remove_observer(Observer& observer);

  // Every block of a pool that cannot be handed out now; by default of the ordinary pool.
  std::vector<BlockInfo> blocks(DeviceIndex device, PoolId pool = {}) const;

  // Gives every idle page back to the driver, after the work that may still touch it has completed.
  // Returns the bytes given back.
  Bytes empty_cache();
  // The same for one private pool; one in use keeps its memory, since a graph may replay into it.
  Bytes empty_cache(PoolId pool);
  // Gives idle pages of one device back to the driver until at most `target` bytes are held. Without `wait` only those
  // that completed work has left. Returns the bytes given back.
  Bytes trim(Bytes target, DeviceIndex device, bool wait = false);

  // At most this fraction of the device, on one device or on all, those not used yet too. Throws UsageError outside
  // [0, 1].
  void set_memory_fraction(double fraction, DeviceIndex device);
  void set_memory_fraction(double fraction);
  double memory_fraction(DeviceIndex device) const;
  // At most so many bytes; 0: no limit but the fraction. Throws UsageError below one page.
  // Lowering either gives idle pages back where that takes no wait; what is beyond it and live stays, and nothing
  // grows.
  void set_memory_limit(Bytes bytes, DeviceIndex device);
  Bytes memory_limit(DeviceIndex device) const;
  // Asked for memory when a request finds none, on any device.
  OomCallbacks& oom_callbacks() { return oom_callbacks_; }

  // Memory of `device` may be used by work on `peer`, from now on and what is mapped already. Throws DriverError.
  void allow_peer(DeviceIndex device, DeviceIndex peer);

  // A name for the live block that contains `address`, under which other processes can open its pages until it is
  // freed. Throws UsageError if there is no such block, or the device cannot share memory.
  SharedBlock share(Address address);
  // At most `count` pieces of the memory of a shared block, from the one on that starts at its page `first`; the caller
  // closes all descriptors that were appended. False if the block was freed, or no piece starts there. Throws
  // DriverError.
  bool export_pieces(const SharedBlock& block, std::size_t first, std::size_t count, std::vector<SharedPiece>* pieces);
  // So many pages of another process at neighbouring addresses of `device`; `piece_at(page)` gives the piece that
  // starts there, in turn, and may throw. Throws DriverError.
  Address open_shared(DeviceIndex device, std::size_t pages, const std::function<SharedPiece(std::size_t)>& piece_at);
  // Waits for the device first; during a capture it is put off.
  void close_shared(DeviceIndex device, Address address);

  // From now on requests on `device` whose stream `filter` accepts come from `pool`, until end_allocate_to_pool.
  // A pool counts its users: every begin_allocate_to_pool is one more, the first makes it.
  // `suspect`: captures into it are not announced by begin_capture, so one is expected until a request shows that there
  // is none.
  void begin_allocate_to_pool(DeviceIndex device, PoolId pool, std::function<bool(StreamId)> filter,
                              bool suspect = false);
  void end_allocate_to_pool(DeviceIndex device, PoolId pool);
  // This thread captures a CUDA graph on the device, from now on until end_capture: what that forbids (driver.h) is not
  // done meanwhile, on any device.
  void begin_capture(DeviceIndex device);
  void end_capture(DeviceIndex device);
  // Whether what a graph has given back may be used again in it behind other streams' uses, once the capture has joined
  // those streams.
  void set_reuse_in_captures(bool reuse);
  // New memory, of streams and of pools, comes in whole allocations from now on, until this is called with false: other
  // libraries can then name it (cudaIpcGetMemHandle) or find its bounds (cuMemGetAddressRange). What is there stays.
  void want_segments(bool wanted);
  // Captured graphs may touch what is idle in the pool, though no capture was seen: a recording does not tell of them.
  void expect_graphs(DeviceIndex device, PoolId pool);
  // One user more; the first makes the pool, and may bring an allocator, from which all of the pool's memory comes
  // then.
  void retain_pool(DeviceIndex device, PoolId pool, std::shared_ptr<SegmentSource> source = nullptr);
  int pool_users(DeviceIndex device, PoolId pool) const;
  // Whether other pools may take this one's idle memory, in use or not, before they run out.
  void set_pool_use_on_oom(DeviceIndex device, PoolId pool, bool use);
  // Every block of the pool has pages of its own, or a segment. Throws UsageError once the pool has memory.
  void set_pool_no_split(DeviceIndex device, PoolId pool);
  // The pool's live blocks, and back to them: blocks live since are freed, those freed since are live again at their
  // addresses, and what lives in both does not change. Throws UsageError if nobody uses the pool, or a capture forbids
  // to wait for its pending frees; DriverError if a block cannot be put back.
  PoolCheckpoint checkpoint(DeviceIndex device, PoolId pool);
  CheckpointDelta restore(const PoolCheckpoint& checkpoint);
  // One user less; at none, its idle memory serves everyone again, and that of blocks still live follows when they
  // are freed and empty_cache is called, or memory runs out.
  void release_pool(DeviceIndex device, PoolId pool);

  // From now on everything asked of the allocator is written to a file (event_log.h), beginning with the blocks that
  // are there. Throws UsageError if the file cannot be written, or another recording is going on.
  // With `stacks` every allocation names where the program was (StackSource).
  void start_log(const std::string& path, const std::string& header, StackSource stacks = {});
  bool recording() const { return log_.load(std::memory_order_acquire) != nullptr; }
  // Ends the file. Returns how many events it has. Throws UsageError if there is no recording, or part of it could not
  // be written.
  std::uint64_t stop_log();
  // Where the program is, in the recording's words; nothing without one.
  void mark(const std::string& text);

  // Until leave_region this thread, and those that work for it, allocate in the region of this tag, which is new if
  // need be; inside another one, the latest counts. Throws UsageError for an empty tag.
  // Without a tag, it allocates outside of every region.
  void enter_region(const std::optional<std::string>& tag);
  void leave_region();
  // Gives the physical memory of these regions to their devices, once all work there has completed. Their addresses,
  // and what lives there, stay; contents are kept where `keep` says, a file in `folder`. One that is asleep stays so.
  // On any error nothing has changed. Throws UsageError (no such region, a capture is going on, something keeps it
  // awake, no room for the contents), DriverError.
  void sleep(const std::vector<std::string>& tags, Keep keep, const std::string& folder = {});
  // Memory for them at the same addresses, with the contents that were kept. On any error all are as asleep as before.
  // Throws OutOfMemory, UsageError, DriverError.
  void wake(const std::vector<std::string>& tags);
  // Every region with memory, on every device.
  std::vector<RegionStats> regions() const;
  std::vector<std::string> region_tags() const { return regions_.tags(); }

  // Devices this process has used.
  std::vector<DeviceIndex> devices() const;
  // Zeros for a device not used yet. Throws UsageError (no such device).
  DeviceStats stats(DeviceIndex device) const;
  void reset_peak_stats(DeviceIndex device);

  // How often the background thread has looked after all devices; 0 where no option asks for the thread.
  std::uint64_t caretaker_rounds() const;

  const Options& options() const { return options_; }
  // Throws InvariantViolation if an equation of any structure does not hold.
  void validate() const;

 private:
  DeviceHeap& device_heap(DeviceIndex device);
  [[gnu::noinline]] DeviceHeap& make_device_heap(DeviceIndex device);
  DeviceHeap* existing(DeviceIndex device) const;
  void tell_observers();
  void check_device(DeviceIndex device) const;
  void tend();
  void let_calls_finish();
  [[noreturn]] void unknown(Address address) const;
  void wake_regions(const std::vector<RegionId>& regions);
  void forget_freed() const;
  [[gnu::noinline]] Address allocate_logged(EventLog& log, Bytes bytes, DeviceIndex device, StreamId stream);

  Options options_;
  const std::unique_ptr<const Plan> plan_;  // null: none
  OomCallbacks oom_callbacks_;
  std::unique_ptr<CountingDriver> driver_;
  std::unique_ptr<CaptureGate> gate_;
  std::unique_ptr<AddressTable> addresses_;
  mutable std::mutex mutex_;  // held while a device is made, and for what new devices start with:
  ObserverList observers_;
  bool segments_wanted_ = false;
  int in_regions_ = 0;  // how often threads have entered regions and not left them
  double fraction_;
  static constexpr int kMaxDevices = 64;
  // What was set for a device that is not in use: it takes effect when the device is, since making it opens a context.
  struct Wanted {
    std::optional<double> fraction;
    std::optional<Bytes> limit;
  };
  Wanted wanted_[kMaxDevices];
  std::atomic<DeviceHeap*> heaps_[kMaxDevices] = {};
  std::atomic<EventLog*> log_{nullptr};
  std::vector<std::unique_ptr<EventLog>> logs_;  // closed ones stay: a thread may be about to add to one
  Regions regions_;
  mutable std::mutex sleeping_;           // one sleep or wake at a time; callbacks are called without it
  std::unique_ptr<Caretaker> caretaker_;  // where an option asks for it, from the first device on
};

}  // namespace poolalloc
