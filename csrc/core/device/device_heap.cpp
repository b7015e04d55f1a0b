// The heaps of a device and the memory that moves between them. Private pools: device_pools.cpp; figures and checks:
// device_stats.cpp.
#include "core/device/device_heap.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/device/ladder.h"
#include "core/device/out_of_memory.h"

namespace poolalloc {

namespace {

// Whether memory can be mapped is tried only where it is to be.
DeviceInfo info_of(Driver& driver, DeviceIndex device, bool segments) {
  DeviceInfo info;
  if ((segments ? driver.device_info(device, &info) : driver.open_device(device, &info)) != Status::ok)
    throw DriverError("cannot use device " + std::to_string(device) + ": " + driver.last_error());
  return info;
}

// For one more, so that adding it cannot fail.
template <typename T>
void make_room(std::vector<T>& all) {
  if (all.size() == all.capacity()) all.reserve(2 * all.size() + 4);
}

// Addresses for a heap, given back if nothing comes of it.
struct Range {
  // All heaps of a process share what it has, 2^47 on most machines. The first get all they can use, those that come
  // later ever less: with so many, none holds much. Beyond kFew a share falls with the square of their number, so that
  // all of these together take little more than one share of the first, and thousands find the least there is.
  static constexpr Bytes kShared = Bytes{8} << 40;
  static constexpr std::uint64_t kFew = 64;

  Range(Driver& driver, DeviceIndex device) : driver(driver), device(device) {}
  ~Range() {
    if (base != 0) driver.release(device, base, bytes);
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  // As many as wanted if they can be had beside those of `others`. Throws DriverError.
  void reserve(Bytes wanted, std::uint64_t others) {
    const std::uint64_t heaps = others + 1;
    const Bytes share = heaps <= kFew ? kShared / heaps : kShared / heaps * kFew / heaps;
    bytes = round_up(std::min(wanted, share), AddressTable::kSlotBytes);
    while (driver.reserve(device, bytes, AddressTable::kSlotBytes, &base) != Status::ok) {
      if (bytes == AddressTable::kSlotBytes)
        throw DriverError("cannot reserve " + format_bytes(bytes) + " of addresses on device " +
                          std::to_string(device) + ": " + driver.last_error());
      bytes = round_up(bytes / 2, AddressTable::kSlotBytes);
    }
  }
  void keep() { base = 0; }

  Driver& driver;
  const DeviceIndex device;
  Address base = 0;
  Bytes bytes = 0;
};

}  // namespace

DeviceHeap::DeviceHeap(Driver& driver, DeviceIndex device, AddressTable& addresses, CaptureGate& gate,
                       const OomCallbacks& callbacks, const Options& options, const Plan* plan)
    : options_(options),
      plan_(plan),
      addresses_(addresses),
      callbacks_(callbacks),
      info_(info_of(driver, device, options.segments)),
      shared_(driver, device, addresses, gate, options.segments || !info_.virtual_memory),
      fraction_(options.memory_fraction),
      limit_(options.memory_limit),
      segments_wanted_(shared_.segmented) {
  if (!shared_.segmented && kPageBytes % info_.granularity != 0)
    throw DriverError("device " + std::to_string(device) + " allocates in units of " + format_bytes(info_.granularity) +
                      "; poolalloc works in pages of " + format_bytes(kPageBytes));
  if (!info_.virtual_memory && !info_.fault.empty())
    std::fprintf(
        stderr,
        "poolalloc: device %d announces virtual memory management that does not work, so memory comes in whole "
        "segments (%s)\n",
        device, info_.fault.c_str());
  shared_.page_supply.set_prepared_pages(Residency::prepared_pages(options_));
  apply_limit();
  if (tended(options_)) shared_.several_heaps = true;  // the background thread reads the totals
}

// Pages only: a segment made ahead would fit few requests.
void DeviceHeap::preallocate() {
  if (shared_.segmented) return;
  const Status status = shared_.page_supply.prepare(options_.prealloc);
  if (status == Status::ok) return;
  const std::string problem = status == Status::out_of_memory ? "" : ": " + shared_.driver.last_error();
  const Bytes made = shared_.destroy_spare();
  Bytes free_bytes = 0, total_bytes = info_.total_bytes;
  shared_.driver.memory_info(shared_.device, &free_bytes, &total_bytes);
  throw OutOfMemory(torchs_sentences(options_.prealloc, shared_.device, free_bytes, total_bytes) +
                    " poolalloc: the option prealloc asks for " + format_bytes(options_.prealloc) + " on device " +
                    std::to_string(shared_.device) + " (" + info_.name + "), of which " + format_bytes(made) +
                    " could be had" + problem + "; poolalloc may hold " + format_bytes(shared_.holdings.limit()) +
                    " of its " + format_bytes(info_.total_bytes));
}

DeviceHeap::~DeviceHeap() {
  // The device's work is assumed done: whoever destroys an allocator has no block left that anyone uses.
  for (auto& pool : pools_) {
    for (auto& heap : pool->heaps) destroy_heap(std::move(heap));
    pool->heaps.clear();
  }
  for (auto& heap : stream_heaps_) destroy_heap(std::move(heap));
  shared_.destroy_spare();
  return_to_sources();
}

// To the nearest byte: bytes / total * total may come out a little below the bytes that a program meant.
Bytes DeviceHeap::limit_of(double fraction, Bytes limit, Bytes total) {
  const auto share = static_cast<Bytes>(std::llround(fraction * static_cast<double>(total)));
  return limit != 0 ? std::min<Bytes>(share, limit) : share;
}

void DeviceHeap::apply_limit() { shared_.holdings.set_limit(limit_of(fraction_, limit_, info_.total_bytes)); }

template <typename Change>
void DeviceHeap::change_limit(Change change) {
  {
    const std::lock_guard<Lock> turn(gathering_);
    change();
    apply_limit();
    trim_to(shared_.holdings.limit(), Wait::no);
  }
  return_to_sources();
}

void DeviceHeap::set_fraction(double fraction) {
  change_limit([&] { fraction_ = fraction; });
}

void DeviceHeap::set_limit(Bytes bytes) {
  change_limit([&] { limit_ = bytes; });
}

// --- heaps -------------------------------------------------------------------------------------------------------

std::unique_ptr<Heap> DeviceHeap::new_heap(StreamId stream, PoolId pool, const PoolTraits& traits,
                                           const StreamPlan* plan) {
  // Slabs never need more addresses than the device has memory, but for one sleeping slab of each class; the arena gets
  // several times that.
  const Bytes slab_bytes = round_up(info_.total_bytes, kPageBytes) + (Slabs::kMaxBin + 1) * kPageBytes;
  const Bytes arena_bytes =
      round_up(static_cast<Bytes>(options_.address_space * static_cast<double>(info_.total_bytes)), kPageBytes);
  if (traits.segments != nullptr)
    return std::make_unique<Heap>(shared_, stream, pool, 0, slab_bytes, arena_bytes, options_, traits);
  Range range(shared_.driver, shared_.device);
  range.reserve(slab_bytes + arena_bytes, addresses_.ranges());
  const Bytes for_slabs = range.bytes < slab_bytes + arena_bytes ? std::min(slab_bytes, range.bytes / 4) : slab_bytes;
  auto heap = std::make_unique<Heap>(shared_, stream, pool, range.base, for_slabs, range.bytes - for_slabs, options_,
                                     traits, plan, plan != nullptr ? plan_->above : 0);
  addresses_.set(range.base, range.bytes, heap.get());
  range.keep();
  return heap;
}

Heap& DeviceHeap::make_heap(StreamId stream) {
  std::lock_guard guard(mutex_);
  auto& bucket = buckets_[bucket_of(stream)];
  for (StreamEntry* entry = bucket.load(); entry != nullptr; entry = entry->next)
    if (entry->stream == stream) return *entry->heap.load();
  if (entries_.size() + pools_.size() > 0) several_heaps_from_now();
  make_room(entries_);
  auto entry = std::make_unique<StreamEntry>(stream, plan_for(stream), bucket.load());
  Heap& heap = choose_heap(*entry);
  entries_.push_back(std::move(entry));
  bucket.store(entries_.back().get(), std::memory_order_release);
  return heap;
}

// The one for memory as it is taken now; made if there is none yet.
Heap& DeviceHeap::choose_heap(StreamEntry& entry) {
  Heap*& heap = entry.heaps[segments_wanted_ ? 1 : 0];
  if (heap == nullptr) {
    make_room(stream_heaps_);
    PoolTraits traits;
    if (segments_wanted_) traits.segments = &shared_.segment_supply;
    stream_heaps_.push_back(new_heap(entry.stream, PoolId{}, traits, entry.plan));
    heap = stream_heaps_.back().get();
  }
  entry.heap.store(heap, std::memory_order_release);
  return *heap;
}

void DeviceHeap::want_segments(bool wanted) {
  std::lock_guard guard(mutex_);
  if (shared_.segmented || segments_wanted_ == wanted) return;
  if (!entries_.empty()) several_heaps_from_now();
  segments_wanted_ = wanted;
  for (auto& entry : entries_) choose_heap(*entry);
}

// Streams have other names in every run, but for the default one: a plan knows the others by the order in which they
// come.
const StreamPlan* DeviceHeap::plan_for(StreamId stream) const {
  if (plan_ == nullptr) return nullptr;
  const auto others =
      std::count_if(entries_.begin(), entries_.end(), [](const auto& entry) { return entry->stream != 0; });
  const auto number = stream == 0 ? 0 : static_cast<std::uint32_t>(others) + 1;
  for (const StreamPlan& part : plan_->streams)
    if (part.device == shared_.device && part.stream == number) return &part;
  return nullptr;
}

// Before another heap comes: what the only one counted so far was the device's.
void DeviceHeap::several_heaps_from_now() {
  if (shared_.several_heaps.exchange(true)) return;
  for (auto& heap : stream_heaps_) heap->publish_from_now();
}

// A pool is being filled, or a thread is in a region: the pools' filters decide, the latest first, and then the
// thread's region. Filters are torch's code, so they run without a lock.
Address DeviceHeap::allocate_while_routing(Bytes bytes, StreamId stream) {
  if (routing_pools_.load() != 0) {
    std::vector<std::pair<PrivatePool*, std::function<bool(StreamId)>>> routes;
    const Visit visit(*this, false, [&](PrivatePool& pool) {
      if (pool.routing) routes.emplace_back(&pool, pool.filter);
      return pool.routing;
    });
    const auto route = std::find_if(routes.rbegin(), routes.rend(), [&](auto& each) { return each.second(stream); });
    if (route != routes.rend()) {
      look_for_capture(*route->first, stream);
      return allocate_in(route->first->region, heap_of_pool(*route->first, stream), bytes);
    }
  }
  const RegionId region = Regions::here();
  return allocate_in(region, region != 0 ? heap_of_region(region, stream) : heap_of(stream), bytes);
}

Address DeviceHeap::allocate_in(RegionId region, Heap& heap, Bytes bytes) {
  Address address = 0;
  if (region != 0 && asleep(region)) asleep_request_(region);
  Status status = heap.allocate(bytes, &address);
  while (status == Status::not_ready && region != 0 && asleep(region)) {  // since it was asked
    asleep_request_(region);
    status = heap.allocate(bytes, &address);
  }
  return status == Status::ok ? address : find_memory(heap, bytes, status);
}

// What a request to the pool tells: one from a captured stream, whoever captures it, belongs to a graph; after one from
// another stream its owner only routes. The legacy default stream (0, and the handle that names it) is never captured,
// though the driver says so while another stream's capture forbids its use.
void DeviceHeap::look_for_capture(PrivatePool& pool, StreamId stream) {
  const bool legacy = stream <= 1;
  {
    std::lock_guard guard(mutex_);
    if (!pool.suspected && (pool.captured || legacy)) return;
  }
  bool capturing = true;
  if (shared_.driver.stream_capturing(shared_.device, stream, &capturing) != Status::ok) capturing = true;
  std::lock_guard guard(mutex_);
  if (capturing)
    pool.captured |= !legacy;
  else if (std::exchange(pool.suspected, false))
    shared_.gate.end(shared_.device);
}

Heap& DeviceHeap::heap_of_pool(PrivatePool& pool, StreamId stream) {
  std::lock_guard guard(mutex_);
  SegmentSupply* const segments = pool.own_supply != nullptr ? pool.own_supply.get()
                                  : segments_wanted_         ? &shared_.segment_supply
                                                             : nullptr;
  for (auto& heap : pool.heaps)
    if (heap->stream() == stream && heap->segmented() == (segments != nullptr)) return *heap;
  several_heaps_from_now();
  make_room(pool.heaps);
  pool.heaps.push_back(new_heap(stream, pool.id, {segments, pool.no_split}));
  return *pool.heaps.back();
}

DeviceHeap::Visit::~Visit() {
  if (pools.empty()) return;
  std::lock_guard guard(device.mutex_);
  for (PrivatePool* pool : pools) --pool->visitors;
}

DeviceHeap::Visit DeviceHeap::all_heaps() const {
  return {*this, true, [](const PrivatePool&) { return true; }};
}

// Not the heaps of pools that graphs use: their replays will touch idle pages again, or still do.
DeviceHeap::Visit DeviceHeap::reclaimable_heaps() const {
  return {*this, true, [](const PrivatePool& pool) { return !keeps_idle(pool); }};
}

DeviceHeap::Visit DeviceHeap::heaps_of_pool_in_use(PoolId id) const {
  {
    std::lock_guard guard(mutex_);
    if (const PrivatePool* pool = find_pool(id); pool == nullptr || pool->users == 0)
      throw UsageError("there is no such private pool, or nobody uses it any more, so it has no checkpoint");
  }
  return {*this, false, [&](const PrivatePool& pool) { return pool.id == id; }};
}

DeviceHeap::Visit DeviceHeap::lending_heaps() const {
  return {*this, false, [](const PrivatePool& pool) { return pool.use_on_oom && pool.users != 0; }};
}

DeviceHeap::Visit DeviceHeap::pools_with_sources() const {
  return {*this, false, [](const PrivatePool& pool) { return pool.source != nullptr; }};
}

void DeviceHeap::destroy_heap(std::unique_ptr<Heap> heap) {
  heap->retire();
  if (heap->segmented()) return;
  addresses_.set(heap->base(), heap->range_bytes(), nullptr);
  shared_.driver.release(shared_.device, heap->base(), heap->range_bytes());
}

void DeviceHeap::allow_access_to_mapped(DeviceIndex peer) {
  std::lock_guard guard(mutex_);
  each_heap([&](Heap& heap) {
    if (heap.allow_access_to_mapped() != Status::ok)
      throw DriverError("device " + std::to_string(peer) + " cannot be given access to the memory of device " +
                        std::to_string(shared_.device) + ": " + shared_.driver.last_error());
  });
}

// --- room --------------------------------------------------------------------------------------------------------

Address DeviceHeap::find_memory(Heap& heap, Bytes bytes, Status status) {
  Address address = 0;
  while (status == Status::not_ready && heap.asks()) {
    status = heap.ask();
    if (status == Status::ok) status = heap.allocate(bytes, &address);
    if (status == Status::ok) return address;
  }
  for (const Heap::Source source : {Heap::Source::spare, Heap::Source::any}) {
    if (status != Status::not_ready) break;
    collect_from_others(heap);
    status = heap.allocate(bytes, &address, source);
  }
  return status == Status::ok ? address : Ladder(*this, heap, bytes).climb(status);
}

// What the heap lacks, as far as other streams have left it and are known to be done with it. Pages that it has mapped
// come back to it; others become spare, for it to take. Nothing waits, neither for the device nor for other threads
// that are at it.
void DeviceHeap::collect_from_others(Heap& heap) {
  const std::unique_lock<Lock> turn(gathering_, std::try_to_lock);
  if (!turn.owns_lock()) return;
  const Heap::Lack lack = heap.lacking();
  const Visit visit = reclaimable_heaps();
  Bytes gained = 0;
  for (Heap* other : visit.heaps) {
    if (other == &heap || other->segmented() != heap.segmented()) continue;  // spare memory of its kind is of no use
    other->poll_pending();
    if (!lack.wanted.empty())
      gained += other->lend(lack.wanted);
    else if (gained < lack.pages * kPageBytes)
      gained += other->reclaim_completed(lack.pages - static_cast<std::uint32_t>(gained / kPageBytes), 1);
  }
  heap.take_back(lack.wanted);
  stolen_.fetch_add(gained / kPageBytes, std::memory_order_relaxed);
}

// So many bytes of kept blocks become idle, as far as there are any. Not during a capture, when nothing idle goes back
// to the device.
Bytes DeviceHeap::release_kept(const std::vector<Heap*>& heaps, Bytes bytes) {
  if (shared_.gate.captures()) return 0;
  Bytes released = 0;
  for (Heap* heap : heaps)
    if (released < bytes) released += heap->release_kept(bytes - released);
  return released;
}

Bytes DeviceHeap::trim(Bytes target, Wait wait) {
  Bytes given = 0;
  {
    const std::lock_guard<Lock> turn(gathering_);
    given = trim_to(target, wait);
  }
  if (wait == Wait::yes) {
    const Visit all = all_heaps();
    for (Heap* heap : all.heaps) heap->shed();
  }
  return given + return_to_sources();
}

// Spare pages first, then what completed work has left, then what has to be waited for; then the same of what exact
// bins keep.
Bytes DeviceHeap::trim_to(Bytes target, Wait wait, KeptBlocks kept) {
  const auto excess = [&] {
    std::lock_guard guard(mutex_);
    const Bytes returning = spare_of_pools();  // once the turn is over
    const Bytes kept = static_cast<Bytes>(shared_.holdings.reserved().current) - returning;
    return kept > target ? round_up(kept - target, kPageBytes) : 0;
  };
  Bytes given = shared_.destroy_spare(excess());
  if (excess() != 0) {
    const Visit all = all_heaps();
    poll_pending(all.heaps);
    const Visit visit = reclaimable_heaps();
    const auto reclaim = [&] {
      for (const Wait how : {Wait::no, Wait::yes}) {
        if (how == Wait::yes && wait == Wait::no) break;
        for (Heap* heap : visit.heaps) {
          const auto frames = static_cast<std::uint32_t>(excess() / kPageBytes);
          if (frames == 0) break;
          if (how == Wait::yes) {
            heap->wait_pending();
            heap->reclaim_waiting(frames);
          } else {
            heap->reclaim_completed(frames);
          }
          given += shared_.destroy_spare(excess());
        }
      }
    };
    reclaim();
    while (kept == KeptBlocks::go && release_kept(visit.heaps, excess()) != 0) {
      reclaim();
      if (wait == Wait::no) break;
    }
  }
  if (excess() == 0 || wait == Wait::no) {
    drop_empty_pools();
    return given;
  }
  collect_released();
  return given + shared_.destroy_spare(excess());
}

// Looks at totals, and into heaps only where something is to go: a thread that comes seldom costs a heap's own thread
// dear (biased_lock.h).
void DeviceHeap::tend(std::uint64_t now) {
  tend_heaps(now);
  return_to_sources();
}

void DeviceHeap::tend_heaps(std::uint64_t now) {
  const std::unique_lock<Lock> turn(gathering_, std::try_to_lock);
  if (!turn.owns_lock()) return;
  if (shared_.deferred.load(std::memory_order_relaxed) != 0) {  // streams that have fallen quiet do not ask themselves
    const Visit visit = all_heaps();
    poll_pending(visit.heaps);
  }
  if (shared_.gate.captures()) return;
  const Bytes reserved = static_cast<Bytes>(shared_.holdings.reserved().current);
  const Bytes kept = static_cast<Bytes>(std::max<std::int64_t>(shared_.resident.current.load(), 0)) +
                     std::min(shared_.spare_bytes(), options_.reserve_ahead);
  const Bytes idle = reserved > kept ? reserved - kept : 0;
  if (options_.trim_high != 0 && idle > options_.trim_high)
    trim_to(std::max(options_.prealloc, reserved - (idle - options_.trim_low)), Wait::no, KeptBlocks::stay);
  if (options_.trim_after != 0 && (idle != 0 || !options_.exact_bins.empty()) && now >= next_aging_) trim_aged(now);
  if (!shared_.segmented) shared_.page_supply.prepare(options_.reserve_ahead);
}

// All that has completed; under the turn.
void DeviceHeap::poll_pending(const std::vector<Heap*>& heaps) const {
  for (Heap* heap : heaps)
    while (heap->poll_pending() != 0) {
    }
}

void DeviceHeap::trim_aged(std::uint64_t now) {
  const auto age = static_cast<std::uint64_t>(options_.trim_after * 1e9);
  next_aging_ = now + age / 4;
  const Bytes reserved = static_cast<Bytes>(shared_.holdings.reserved().current);
  const Bytes spare = std::min(shared_.spare_bytes(), spare_before_);
  Bytes going = spare > options_.reserve_ahead ? spare - options_.reserve_ahead : 0;
  const Bytes most = reserved > options_.prealloc ? reserved - options_.prealloc : 0;
  const Visit visit = reclaimable_heaps();
  for (Heap* heap : visit.heaps)
    if (going < most) going += heap->reclaim_aged(static_cast<std::uint32_t>((most - going) / kPageBytes), now, age);
  shared_.destroy_spare(std::min(going, most));
  spare_before_ = shared_.spare_bytes();
}

Bytes DeviceHeap::live_bytes() const {
  const Visit visit = all_heaps();
  Bytes live = 0;
  for (Heap* heap : visit.heaps) live += heap->live_bytes();
  return live;
}

Bytes DeviceHeap::empty_cache(PoolId id) {
  {
    std::lock_guard guard(mutex_);
    if (const PrivatePool* pool = find_pool(id); pool != nullptr && pool->users != 0) return 0;
  }
  Bytes given = 0;
  {
    const std::lock_guard<Lock> turn(gathering_);
    collect_released();
    given = shared_.destroy_spare();
  }
  return given + return_to_sources();
}

}  // namespace poolalloc
