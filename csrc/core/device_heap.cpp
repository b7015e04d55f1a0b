#include "core/device_heap.h"

#include <algorithm>

#include "core/check.h"
#include "core/ladder.h"

namespace poolalloc {

namespace {

DeviceInfo info_of(Driver& driver, DeviceIndex device) {
  DeviceInfo info;
  if (driver.device_info(device, &info) != Status::ok)
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
  // later ever less, so that thousands find some: with so many, none holds much.
  static constexpr Bytes kShared = Bytes{8} << 40;

  Range(Driver& driver, DeviceIndex device) : driver(driver), device(device) {}
  ~Range() {
    if (base != 0) driver.release(device, base, bytes);
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  // As many as wanted if they can be had beside those of `others`. Throws DriverError.
  void reserve(Bytes wanted, std::uint64_t others) {
    bytes = round_up(std::min(wanted, kShared / (others + 1)), AddressTable::kSlotBytes);
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

// join(into, from) for every counter that heaps and devices have; `from` is a heap's statistics or a device's.
template <typename From, typename Join>
void join_counters(DeviceStats& stats, const From& from, Join join) {
  join(stats.requested, from.requested);
  join(stats.live, from.live);
  join(stats.pending, from.pending);
  join(stats.kept, from.kept);
  join(stats.resident, from.resident);
  for (auto [into, part] : {std::pair{&stats.all, &from.all}, {&stats.small, &from.small}, {&stats.large, &from.large}})
    for (auto counter : {&BlockStats::blocks, &BlockStats::requested, &BlockStats::live, &BlockStats::held_blocks,
                         &BlockStats::held, &BlockStats::reserved, &BlockStats::unused})
      join(into->*counter, part->*counter);
}

// Of heaps that are there together, peaks add up; of those that were there before, the highest counts.
void add(Counter& into, const Counter& from) {
  into.current += from.current;
  into.peak += from.peak;
  into.total += from.total;
}
void add_without_peak(Counter& into, const Counter& from) {
  into.current += from.current;
  into.total += from.total;
}
void raise_peak(Counter& into, const Counter& from) { into.peak = std::max(into.peak, from.peak); }

template <typename From>
void add_events(DeviceStats& stats, const From& one) {
  stats.allocations += one.allocations;
  stats.frees += one.frees;
  stats.pages_aliased += one.pages_aliased;
  stats.pending_completed += one.pending_completed;
  stats.plan_hits += one.plan_hits;
  stats.plan_misses += one.plan_misses;
  stats.plan_resyncs += one.plan_resyncs;
  stats.kept_hits += one.kept_hits;
  stats.kept_misses += one.kept_misses;
  stats.kept_released += one.kept_released;
  stats.waits += one.waits;
  stats.all.gaps += one.all.gaps;
  stats.small.gaps += one.small.gaps;
  stats.large.gaps += one.large.gaps;
  stats.live_blocks += one.live_blocks;
}

}  // namespace

DeviceHeap::DeviceHeap(Driver& driver, DeviceIndex device, AddressTable& addresses, const OomCallbacks& callbacks,
                       const Options& options, const Plan* plan)
    : options_(options),
      plan_(plan),
      addresses_(addresses),
      callbacks_(callbacks),
      info_(info_of(driver, device)),
      shared_(driver, device, addresses, options.segments || !info_.virtual_memory),
      fraction_(options.memory_fraction),
      limit_(options.memory_limit) {
  if (!shared_.segmented && kPageBytes % info_.granularity != 0)
    throw DriverError("device " + std::to_string(device) + " allocates in units of " + format_bytes(info_.granularity) +
                      "; poolalloc works in pages of " + format_bytes(kPageBytes));
  apply_limit();
  if (tended(options_)) shared_.several_heaps = true;  // the background thread reads the totals
}

// Pages only: a segment made ahead would fit few requests.
void DeviceHeap::preallocate() {
  if (shared_.segmented) return;
  const Status status = shared_.page_supply.prepare(options_.prealloc);
  if (status == Status::ok) return;
  const std::string problem = status == Status::out_of_memory ? "" : ": " + shared_.driver.last_error();
  const Bytes made = shared_.supply.destroy_spare();
  throw OutOfMemory("poolalloc: the option prealloc asks for " + format_bytes(options_.prealloc) + " on device " +
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
  shared_.supply.destroy_spare();
  return_to_sources();
}

void DeviceHeap::apply_limit() {
  Bytes limit = static_cast<Bytes>(fraction_ * static_cast<double>(info_.total_bytes));
  if (limit_ != 0) limit = std::min<Bytes>(limit, limit_);
  shared_.holdings.set_limit(limit);
}

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
  if (shared_.segmented || traits.own_supply != nullptr)
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
    if (entry->stream == stream) return *entry->heap;
  if (entries_.size() + pools_.size() > 0) several_heaps_from_now();
  make_room(stream_heaps_);
  make_room(entries_);
  auto entry = std::make_unique<StreamEntry>(StreamEntry{stream, nullptr, bucket.load()});
  stream_heaps_.push_back(new_heap(stream, PoolId{}, {}, plan_for(stream)));
  entry->heap = stream_heaps_.back().get();
  entries_.push_back(std::move(entry));
  bucket.store(entries_.back().get(), std::memory_order_release);
  return *stream_heaps_.back();
}

// Streams have other names in every run, but for the default one: a plan knows the others by the order in which they
// come.
const StreamPlan* DeviceHeap::plan_for(StreamId stream) const {
  if (plan_ == nullptr) return nullptr;
  const auto others =
      std::count_if(stream_heaps_.begin(), stream_heaps_.end(), [](const auto& heap) { return heap->stream() != 0; });
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

// A pool is being filled: its filter decides, the latest pool first. Filters are torch's code, so they run without a
// lock.
Address DeviceHeap::allocate_while_routing(Bytes bytes, StreamId stream) {
  std::vector<std::pair<PrivatePool*, std::function<bool(StreamId)>>> routes;
  const Visit visit(*this, false, [&](PrivatePool& pool) {
    if (pool.routing) routes.emplace_back(&pool, pool.filter);
    return pool.routing;
  });
  const auto route = std::find_if(routes.rbegin(), routes.rend(), [&](auto& each) { return each.second(stream); });
  Heap& heap = route != routes.rend() ? heap_of_pool(*route->first, stream) : heap_of(stream);
  Address address = 0;
  const Status status = heap.allocate(bytes, &address);
  return status == Status::ok ? address : find_memory(heap, bytes, status);
}

Heap& DeviceHeap::heap_of_pool(PrivatePool& pool, StreamId stream) {
  std::lock_guard guard(mutex_);
  for (auto& heap : pool.heaps)
    if (heap->stream() == stream) return *heap;
  several_heaps_from_now();
  make_room(pool.heaps);
  pool.heaps.push_back(new_heap(stream, pool.id, {pool.own_supply.get(), pool.no_split}));
  return *pool.heaps.back();
}

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

DeviceHeap::Visit::~Visit() {
  if (pools.empty()) return;
  std::lock_guard guard(device.mutex_);
  for (PrivatePool* pool : pools) --pool->visitors;
}

DeviceHeap::Visit DeviceHeap::all_heaps() const {
  return {*this, true, [](const PrivatePool&) { return true; }};
}

// Not the heaps of pools in use: a graph's replays will touch their idle pages again, or still do.
DeviceHeap::Visit DeviceHeap::reclaimable_heaps() const {
  return {*this, true, [](const PrivatePool& pool) { return pool.quiet; }};
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

// --- private pools -----------------------------------------------------------------------------------------------

DeviceHeap::PrivatePool* DeviceHeap::find_pool(PoolId pool) const {
  for (auto& entry : pools_)
    if (entry->id == pool) return entry.get();
  return nullptr;
}

DeviceHeap::PrivatePool& DeviceHeap::add_user(PoolId id) {
  PrivatePool* pool = find_pool(id);
  if (pool == nullptr) {
    pools_.push_back(std::make_unique<PrivatePool>());
    pool = pools_.back().get();
    pool->id = id;
  }
  ++pool->users;
  pool->quiet = false;
  return *pool;
}

// When this returns, no thread is in the middle of a call that a capture forbids: all of them look at `captures` after
// they have taken their turn or their heap's lock.
void DeviceHeap::begin_allocate_to_pool(PoolId id, std::function<bool(StreamId)> filter) {
  {
    std::lock_guard guard(mutex_);
    if (const PrivatePool* pool = find_pool(id); pool != nullptr && pool->routing)
      throw UsageError("requests already go to this pool; end_allocate_to_pool first");
    PrivatePool& pool = add_user(id);
    pool.filter = std::move(filter);
    pool.routing = true;
    // The latest pool decides first: it stands at the end.
    std::rotate(std::find_if(pools_.begin(), pools_.end(), [&](auto& entry) { return entry.get() == &pool; }),
                std::find_if(pools_.begin(), pools_.end(), [&](auto& entry) { return entry.get() == &pool; }) + 1,
                pools_.end());
    shared_.captures.fetch_add(1);
  }
  {
    const std::lock_guard<Lock> turn(gathering_);
  }
  std::lock_guard guard(mutex_);
  each_heap([](const Heap& heap) { heap.let_calls_finish(); });
}

void DeviceHeap::retain_pool(PoolId id, std::shared_ptr<SegmentSource> source) {
  std::lock_guard guard(mutex_);
  const bool is_new = find_pool(id) == nullptr;
  PrivatePool& pool = add_user(id);
  if (!is_new || source == nullptr) return;
  pool.own_supply = std::make_unique<SegmentSupply>(shared_.driver, shared_.device, shared_.holdings, source.get());
  pool.source = std::move(source);
}

int DeviceHeap::pool_users(PoolId id) const {
  std::lock_guard guard(mutex_);
  const PrivatePool* pool = find_pool(id);
  return pool != nullptr ? pool->users : 0;
}

void DeviceHeap::set_pool_use_on_oom(PoolId id, bool use) {
  std::lock_guard guard(mutex_);
  PrivatePool* pool = find_pool(id);
  if (pool == nullptr) throw UsageError("no such pool");
  pool->use_on_oom = use;
}

void DeviceHeap::set_pool_no_split(PoolId id) {
  std::lock_guard guard(mutex_);
  PrivatePool* pool = find_pool(id);
  if (pool == nullptr) throw UsageError("no such pool");
  if (!pool->heaps.empty() && !pool->no_split) throw UsageError("this pool has split its memory already");
  pool->no_split = true;
}

void DeviceHeap::end_allocate_to_pool(PoolId id) {
  std::lock_guard guard(mutex_);
  PrivatePool* pool = find_pool(id);
  if (pool == nullptr || !pool->routing) throw UsageError("no requests go to this pool; begin_allocate_to_pool first");
  pool->routing = false;
  pool->filter = nullptr;
  shared_.captures.fetch_sub(1, std::memory_order_release);
}

void DeviceHeap::release_pool(PoolId id) {
  {
    std::lock_guard guard(mutex_);
    PrivatePool* pool = find_pool(id);
    if (pool == nullptr || pool->users == 0) throw UsageError("no such pool to release");
    if (--pool->users > 0) return;
  }
  {
    const std::lock_guard<Lock> turn(gathering_);
    collect_released();
  }
  return_to_sources();
}

std::vector<BlockInfo> DeviceHeap::blocks(PoolId id) const {
  std::lock_guard guard(mutex_);
  const PrivatePool* pool = find_pool(id);
  std::vector<BlockInfo> found;
  if (id == PoolId{}) {
    for (auto& heap : stream_heaps_) heap->append_blocks(found);
  } else if (pool != nullptr) {
    for (auto& heap : pool->heaps) heap->append_blocks(found);
  }
  return found;
}

DeviceLayout DeviceHeap::layout() const {
  std::lock_guard guard(mutex_);
  DeviceLayout layout;
  each_heap([&](const Heap& heap) { layout.heaps.push_back(heap.layout()); });
  layout.spare = shared_.holdings.spare();
  return layout;
}

// A graph may have been launched on any stream, so the end of its pool's memory waits for all of them. Only with the
// turn of those that wait for the device, so that no capture begins meanwhile.
void DeviceHeap::await_released() {
  if (shared_.captures.load(std::memory_order_relaxed) != 0) return;
  const Visit released(*this, false, [](PrivatePool& pool) {
    const bool ending = pool.users == 0 && !pool.quiet;
    pool.quiet |= ending;  // a user that comes meanwhile takes it back
    return ending;
  });
  if (released.pools.empty() || shared_.driver.synchronize_device(shared_.device) == Status::ok) return;
  std::lock_guard guard(mutex_);
  for (PrivatePool* pool : released.pools) pool->quiet = false;
}

// Pools nobody uses give their idle frames back.
void DeviceHeap::collect_released() {
  await_released();
  {
    const Visit released(*this, false, [](const PrivatePool& pool) { return pool.quiet; });
    for (Heap* heap : released.heaps) {
      heap->wait_pending();
      heap->reclaim_waiting(~0u);
    }
  }
  drop_empty_pools();
}

Bytes DeviceHeap::return_to_sources() {
  if (shared_.captures.load(std::memory_order_relaxed) != 0) return 0;
  Bytes bytes = 0;
  {
    const Visit visit = pools_with_sources();
    for (PrivatePool* pool : visit.pools) bytes += pool->own_supply->destroy_spare();
  }
  if (bytes != 0) drop_empty_pools();
  return bytes;
}

// Under mutex_.
Bytes DeviceHeap::spare_of_pools() const {
  Bytes bytes = 0;
  for (auto& pool : pools_)
    if (pool->own_supply != nullptr) bytes += pool->own_supply->spare_bytes();
  return bytes;
}

// Of the pools nobody uses, those without live blocks go altogether. What they counted stays: peaks as sums with the
// heaps beside them.
void DeviceHeap::drop_empty_pools() noexcept {
  std::vector<std::shared_ptr<SegmentSource>> sources;  // that end with their pools, under no lock
  std::lock_guard guard(mutex_);
  const auto needed = [](const std::unique_ptr<PrivatePool>& pool) {
    return !pool->quiet || pool->routing || pool->visitors != 0 ||
           (pool->own_supply != nullptr && pool->own_supply->spare_bytes() != 0) ||
           std::any_of(pool->heaps.begin(), pool->heaps.end(),
                       [](const auto& heap) { return heap->live_blocks() != 0 || heap->mapped(); });
  };
  const auto empty = std::stable_partition(pools_.begin(), pools_.end(), needed);
  if (empty == pools_.end()) return;
  join_counters(gone_, sum_of_heaps(), raise_peak);
  for (auto pool = empty; pool != pools_.end(); ++pool) {
    for (auto& heap : (*pool)->heaps) {
      heap->publish();
      const HeapStats last = heap->stats();
      join_counters(gone_, last, add_without_peak);
      add_events(gone_, last);
      destroy_heap(std::move(heap));
    }
    sources.push_back(std::move((*pool)->source));
  }
  pools_.erase(empty, pools_.end());
}

void DeviceHeap::allow_access_to_mapped(DeviceIndex peer) {
  std::lock_guard guard(mutex_);
  each_heap([&](Heap& heap) {
    if (heap.allow_access_to_mapped(peer) != Status::ok)
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
    if (other == &heap) continue;
    if (!lack.wanted.empty())
      gained += other->lend(lack.wanted);
    else if (gained < lack.pages * kPageBytes)
      gained += other->reclaim_completed(lack.pages - static_cast<std::uint32_t>(gained / kPageBytes), 1);
  }
  heap.take_back(lack.wanted);
  stolen_.fetch_add(gained / kPageBytes, std::memory_order_relaxed);
}

// So many bytes of kept blocks become idle, as far as there are any. Not during a capture, when nothing idle could
// leave.
Bytes DeviceHeap::release_kept(const std::vector<Heap*>& heaps, Bytes bytes) {
  if (shared_.captures.load(std::memory_order_relaxed) != 0) return 0;
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
  Supply& supply = shared_.supply;
  const auto excess = [&] {
    std::lock_guard guard(mutex_);
    const Bytes returning = spare_of_pools();  // once the turn is over
    const Bytes kept = static_cast<Bytes>(shared_.holdings.reserved().current) - returning;
    return kept > target ? round_up(kept - target, kPageBytes) : 0;
  };
  Bytes given = supply.destroy_spare(excess());
  if (excess() != 0) {
    const Visit all = all_heaps();
    for (Heap* heap : all.heaps) heap->poll_pending();
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
          given += supply.destroy_spare(excess());
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
  return given + supply.destroy_spare(excess());
}

// Looks at totals, and into heaps only where something is to go: a thread that comes seldom costs a heap's own thread
// dear (biased_lock.h).
void DeviceHeap::tend(std::uint64_t now) {
  tend_heaps(now);
  return_to_sources();
}

void DeviceHeap::tend_heaps(std::uint64_t now) {
  const std::unique_lock<Lock> turn(gathering_, std::try_to_lock);
  if (!turn.owns_lock() || shared_.captures.load() != 0) return;
  Supply& supply = shared_.supply;
  const Bytes reserved = static_cast<Bytes>(shared_.holdings.reserved().current);
  const Bytes kept = static_cast<Bytes>(std::max<std::int64_t>(shared_.resident.current.load(), 0)) +
                     std::min(supply.spare_bytes(), options_.reserve_ahead);
  const Bytes idle = reserved > kept ? reserved - kept : 0;
  if (options_.trim_high != 0 && idle > options_.trim_high)
    trim_to(std::max(options_.prealloc, reserved - (idle - options_.trim_low)), Wait::no, KeptBlocks::stay);
  if (options_.trim_after != 0 && (idle != 0 || !options_.exact_bins.empty()) && now >= next_aging_) trim_aged(now);
  if (!shared_.segmented) shared_.page_supply.prepare(options_.reserve_ahead);
}

void DeviceHeap::trim_aged(std::uint64_t now) {
  const auto age = static_cast<std::uint64_t>(options_.trim_after * 1e9);
  next_aging_ = now + age / 4;
  Supply& supply = shared_.supply;
  const Bytes reserved = static_cast<Bytes>(shared_.holdings.reserved().current);
  const Bytes spare = std::min(supply.spare_bytes(), spare_before_);
  Bytes going = spare > options_.reserve_ahead ? spare - options_.reserve_ahead : 0;
  const Bytes most = reserved > options_.prealloc ? reserved - options_.prealloc : 0;
  const Visit visit = reclaimable_heaps();
  for (Heap* heap : visit.heaps)
    if (going < most) going += heap->reclaim_aged(static_cast<std::uint32_t>((most - going) / kPageBytes), now, age);
  supply.destroy_spare(std::min(going, most));
  spare_before_ = supply.spare_bytes();
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
    given = shared_.supply.destroy_spare();
  }
  return given + return_to_sources();
}

// --- statistics --------------------------------------------------------------------------------------------------

// Under mutex_.
DeviceStats DeviceHeap::sum_of_heaps() const {
  DeviceStats stats;
  each_heap([&](const Heap& heap) {
    stats.heaps.push_back(heap.stats());
    join_counters(stats, stats.heaps.back(), add);
    add_events(stats, stats.heaps.back());
    stats.metadata_bytes += stats.heaps.back().metadata_bytes;
  });
  return stats;
}

DeviceStats DeviceHeap::stats() const {
  std::lock_guard guard(mutex_);
  DeviceStats stats = sum_of_heaps();
  join_counters(stats, gone_, add_without_peak);
  join_counters(stats, gone_, raise_peak);
  add_events(stats, gone_);
  stats.device = shared_.device;
  stats.total_bytes = info_.total_bytes;
  stats.limit_bytes = shared_.holdings.limit();
  stats.virtual_memory = !shared_.segmented;
  stats.reserved = shared_.holdings.reserved();
  stats.unmapped = shared_.holdings.spare();
  stats.pages_created = shared_.holdings.created();
  stats.pages_destroyed = shared_.holdings.destroyed();
  stats.pages_stolen = stolen_.load(std::memory_order_relaxed);
  stats.retries = retries_.load(std::memory_order_relaxed);
  stats.callbacks = called_back_.load(std::memory_order_relaxed);
#define X(name) stats.after_##name = served_after_[static_cast<int>(LadderRung::name)].load(std::memory_order_relaxed);
  POOLALLOC_RUNGS(X)
#undef X
  stats.out_of_memory = out_of_memory_.load(std::memory_order_relaxed);
  if (shared_.several_heaps.load()) {
    const auto device_peak = [](Counter& counter, const DeviceTotals& total) {
      counter.peak = std::max(counter.current, total.peak.load(std::memory_order_relaxed));
    };
    device_peak(stats.requested, shared_.requested);
    device_peak(stats.live, shared_.live);
    device_peak(stats.pending, shared_.pending);
    device_peak(stats.kept, shared_.kept);
    device_peak(stats.resident, shared_.resident);
  }
  stats.idle.current = stats.reserved.current - stats.resident.current;
  stats.all.requested = stats.requested;
  stats.all.live = stats.live;
  stats.all.held.peak = std::max(stats.all.live.peak, std::min(stats.all.held.peak, stats.resident.peak));
  // Spare pages belong to no heap; they count as large, which is all that is not small.
  stats.all.reserved = stats.reserved;
  stats.large.reserved.current = stats.reserved.current - stats.small.reserved.current;
  stats.large.reserved.total = stats.reserved.total - std::min(stats.reserved.total, stats.small.reserved.total);
  stats.large.reserved.peak =
      std::max(stats.large.reserved.current, std::min(stats.large.reserved.peak, stats.reserved.peak));
  return stats;
}

void DeviceHeap::reset_peaks() {
  shared_.holdings.reset_peak();
  std::lock_guard guard(mutex_);
  each_heap([](Heap& heap) {
    heap.publish();
    heap.reset_peaks();
  });
  join_counters(gone_, gone_, [](Counter& counter, const Counter&) { counter.reset_peak(); });
  for (DeviceTotals* total : {&shared_.requested, &shared_.live, &shared_.pending, &shared_.kept, &shared_.resident})
    total->peak.store(total->current.load());
}

void DeviceHeap::validate() const {
  const std::lock_guard<Lock> turn(gathering_);  // the background thread may be creating pages
  Bytes held = 0;
  const Visit visit = all_heaps();
  for (Heap* heap : visit.heaps) {
    heap->validate();
    held += static_cast<Bytes>(heap->stats().reserved.current);
  }
  // Pages on their way between a heap and the supply belong to neither, so this holds only while nobody allocates.
  POOLALLOC_ENSURE(static_cast<Bytes>(shared_.holdings.reserved().current) == held + shared_.holdings.spare(),
                   "reserved = resident + idle + spare");
}

}  // namespace poolalloc
