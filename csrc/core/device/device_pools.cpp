// Private pools of a device: who uses them, where requests go meanwhile, and the end of their memory.
#include <algorithm>

#include "core/device/device_heap.h"

namespace poolalloc {

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
  if (const RegionId region = Regions::here(); region != 0 && pool->heaps.empty()) pool->region = region;
  ++pool->users;
  pool->quiet = false;
  return *pool;
}

void DeviceHeap::begin_allocate_to_pool(PoolId id, std::function<bool(StreamId)> filter, Routing routing) {
  {
    std::lock_guard guard(mutex_);
    if (const PrivatePool* pool = find_pool(id); pool != nullptr && pool->routing)
      throw UsageError("requests already go to this pool; end_allocate_to_pool first");
    PrivatePool& pool = add_user(id);
    pool.filter = std::move(filter);
    pool.routing = true;
    pool.suspected = routing == Routing::suspect;
    // The latest pool decides first: it stands at the end.
    std::rotate(std::find_if(pools_.begin(), pools_.end(), [&](auto& entry) { return entry.get() == &pool; }),
                std::find_if(pools_.begin(), pools_.end(), [&](auto& entry) { return entry.get() == &pool; }) + 1,
                pools_.end());
    routing_pools_.fetch_add(1);
    shared_.routes.fetch_add(1);
  }
  if (routing == Routing::suspect) shared_.gate.begin(shared_.device);
}

// Whoever unmaps under its heap's lock looks at the gate under that lock.
void DeviceHeap::let_calls_finish() {
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

void DeviceHeap::expect_graphs(PoolId id) {
  std::lock_guard guard(mutex_);
  PrivatePool* pool = find_pool(id);
  if (pool == nullptr) throw UsageError("no such pool");
  pool->captured = true;
}

void DeviceHeap::end_allocate_to_pool(PoolId id) {
  std::lock_guard guard(mutex_);
  PrivatePool* pool = find_pool(id);
  if (pool == nullptr || !pool->routing) throw UsageError("no requests go to this pool; begin_allocate_to_pool first");
  pool->routing = false;
  pool->filter = nullptr;
  if (std::exchange(pool->suspected, false)) shared_.gate.end(shared_.device);
  routing_pools_.fetch_sub(1);
  shared_.routes.fetch_sub(1, std::memory_order_release);
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

// A graph may have been launched on any stream, so the end of its pool's memory waits for all of them.
void DeviceHeap::await_released() {
  {
    std::lock_guard guard(mutex_);
    const auto ending = [](const auto& pool) { return pool->users == 0 && !pool->quiet; };
    if (std::none_of(pools_.begin(), pools_.end(), ending)) return;
  }
  const auto token = shared_.gate.no_capture(shared_.device);
  if (!token) return;
  const Visit released(*this, false, [](PrivatePool& pool) {
    const bool ending = pool.users == 0 && !pool.quiet;
    pool.quiet |= ending;  // a user that comes meanwhile takes it back
    return ending;
  });
  if (released.pools.empty() || shared_.driver.synchronize_device(*token, shared_.device) == Status::ok) return;
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
  if (shared_.gate.captures()) return 0;
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

// Of the pools nobody uses, those without live blocks go altogether. What they counted stays.
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
  keep_peaks();
  for (auto pool = empty; pool != pools_.end(); ++pool) {
    for (auto& heap : (*pool)->heaps) {
      heap->publish();
      keep_totals(*heap);
      destroy_heap(std::move(heap));
    }
    sources.push_back(std::move((*pool)->source));
  }
  pools_.erase(empty, pools_.end());
}

}  // namespace poolalloc
