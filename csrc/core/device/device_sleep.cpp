// Regions of a device: whose heaps they are, and how their physical memory goes to the device and comes back.
//
// Sleep: requests are refused; all work of the device is waited for; contents are copied; every mapping goes; the
// handles go. Waking goes the other way. What can fail comes before what cannot be taken back: a sleep that fails
// leaves the region awake, and a wake that fails leaves it asleep, with its contents.
#include <algorithm>
#include <utility>

#include "core/device/device_heap.h"
#include "core/device/out_of_memory.h"

namespace poolalloc {

namespace {

[[noreturn]] void raise_captured(const char* what) {
  throw UsageError(std::string("a CUDA graph is being captured, so no region can ") + what + " now");
}

}  // namespace

void DeviceHeap::enter_region() { shared_.routes.fetch_add(1); }

void DeviceHeap::leave_region() { shared_.routes.fetch_sub(1, std::memory_order_release); }

Heap& DeviceHeap::heap_of_region(RegionId region, StreamId stream) {
  PrivatePool* pool = nullptr;
  {
    std::lock_guard guard(mutex_);
    pool = find_pool(pool_of(region));
    if (pool == nullptr) {
      pool = &add_user(pool_of(region));  // for ever: its addresses are the region's
      pool->region = region;
    }
  }
  look_for_capture(*pool, stream);
  return heap_of_pool(*pool, stream);
}

bool DeviceHeap::graphs_may_touch(const Heap& heap) const {
  std::lock_guard guard(mutex_);
  const PrivatePool* pool = find_pool(heap.pool());
  return pool != nullptr && keeps_idle(*pool);
}

// The same of a heap that is asleep: nothing has run there since, so a pool without a user has no graph.
bool DeviceHeap::graphs_will_touch(const Heap& heap) const {
  std::lock_guard guard(mutex_);
  const PrivatePool* pool = find_pool(heap.pool());
  return pool != nullptr && pool->users != 0 && keeps_idle(*pool);
}

DeviceHeap::Visit DeviceHeap::heaps_of_region(RegionId region) const {
  return {*this, false, [region](const PrivatePool& pool) { return pool.region == region; }};
}

bool DeviceHeap::asleep(RegionId region) const {
  std::lock_guard guard(mutex_);
  const auto found = regions_.find(region);
  return found != regions_.end() && found->second.asleep;
}

std::optional<std::pair<Keep, std::string>> DeviceHeap::kept(RegionId region) const {
  std::lock_guard guard(mutex_);
  const auto found = regions_.find(region);
  if (found == regions_.end() || !found->second.asleep) return std::nullopt;
  return std::pair{found->second.keep, found->second.folder};
}

bool DeviceHeap::has_region(RegionId region) const {
  std::lock_guard guard(mutex_);
  return std::any_of(pools_.begin(), pools_.end(), [region](const auto& pool) { return pool->region == region; });
}

Bytes DeviceHeap::host_bytes() const {
  std::lock_guard guard(mutex_);
  Bytes bytes = 0;
  for (const auto& [region, memory] : regions_)
    if (memory.contents != nullptr && memory.contents->place() == Keep::host) bytes += memory.contents->bytes();
  return bytes;
}

// --- falling asleep ----------------------------------------------------------------------------------------------

void DeviceHeap::sleep(RegionId region, Keep keep, const std::string& folder, Bytes room) {
  const std::lock_guard<Lock> turn(gathering_);
  if (asleep(region)) return;
  const auto token = shared_.gate.no_capture(shared_.device);
  if (!token) raise_captured("fall asleep");
  collect_released();
  const Visit visit = heaps_of_region(region);
  for (Heap* heap : visit.heaps)
    if (!graphs_may_touch(*heap)) heap->reclaim_waiting(~0u);
  shared_.destroy_spare();

  RegionMemory* memory = nullptr;
  {
    std::lock_guard guard(mutex_);
    memory = &regions_[region];
  }
  for (Heap* heap : visit.heaps) heap->begin_sleep();
  std::unique_ptr<Contents> contents;
  std::vector<SavedBytes> saved;
  std::vector<Sleeper> sleepers;
  try {
    if (shared_.driver.synchronize_device(*token, shared_.device) != Status::ok)
      throw DriverError("device " + std::to_string(shared_.device) +
                        " cannot be waited for: " + shared_.driver.last_error());
    Bytes bytes = 0;
    for (Heap* heap : visit.heaps) {
      while (heap->poll_pending() != 0) {
      }
      if (heap->has_pending()) heap->wait_pending();
      if (const char* reason = heap->kept_awake_by())
        throw UsageError("the region " + quoted(region_names_->tag(region)) + " cannot sleep on device " +
                         std::to_string(shared_.device) + ": " + reason);
      for (const MemoryRun& run : heap->live_runs()) {
        saved.push_back({run.address, run.bytes, bytes});
        bytes += run.bytes;
      }
      sleepers.push_back({heap, heap->aliases()});
    }
    if (keep == Keep::nothing || bytes == 0) saved.clear();
    if (!saved.empty()) {
      if (keep == Keep::host && bytes > room)
        throw UsageError("the contents of the region " + quoted(region_names_->tag(region)) + " are " +
                         format_bytes(bytes) + ", and the option sleep_host_limit leaves " + format_bytes(room));
      std::sort(saved.begin(), saved.end(), [](const auto& a, const auto& b) { return a.address < b.address; });
      contents = keep == Keep::host ? Contents::in_host(bytes) : Contents::in_file(folder, bytes);
      Copier(shared_.driver, *token, shared_.device).save(saved, contents.get());
    }
    unmap_all(sleepers);
  } catch (...) {
    for (Heap* heap : visit.heaps) heap->cancel_sleep();
    throw;
  }
  for (const Sleeper& sleeper : sleepers) sleeper.heap->fell_asleep();
  destroy_handles(sleepers);
  std::lock_guard guard(mutex_);
  *memory = {true, keep, folder, std::move(contents), std::move(saved)};
}

// All or nothing.
void DeviceHeap::unmap_all(const std::vector<Sleeper>& sleepers) {
  for (const Sleeper& sleeper : sleepers) {
    std::size_t gone = 0;
    for (const Residency::Alias& alias : sleeper.aliases) {
      if (shared_.driver.unmap(shared_.device, alias.address, alias.pages * kPageBytes) != Status::ok) break;
      ++gone;
    }
    if (gone == sleeper.aliases.size()) continue;
    const std::string problem = shared_.driver.last_error();
    // What is unmapped so far comes back.
    for (const Sleeper& before : sleepers) {
      const std::size_t count = &before == &sleeper ? gone : before.aliases.size();
      for (std::size_t i = 0; i < count; ++i) {
        const Residency::Alias& alias = before.aliases[i];
        shared_.driver.map(shared_.device, alias.address, alias.pages * kPageBytes, alias.handle);
        shared_.driver.allow_access(shared_.device, alias.address, alias.pages * kPageBytes);
      }
      if (&before == &sleeper) break;
    }
    throw DriverError("the driver refused to unmap a region: " + problem);
  }
}

// One handle has several aliases, which are neighbours in the list.
void DeviceHeap::destroy_handles(const std::vector<Sleeper>& sleepers) {
  std::vector<PhysicalSpan> spans;
  for (const Sleeper& sleeper : sleepers)
    for (const Residency::Alias& alias : sleeper.aliases)
      if (alias.handle != 0 && (spans.empty() || spans.back().handle != alias.handle))
        spans.push_back({alias.handle, alias.pages});
  shared_.page_supply.destroy(std::move(spans));
}

// --- waking ------------------------------------------------------------------------------------------------------

Status DeviceHeap::wake(const std::vector<RegionId>& regions, Bytes* missing) {
  std::vector<Sleeper> sleepers;
  std::vector<RegionId> waking;
  for (const RegionId region : regions) {
    if (!asleep(region) || std::find(waking.begin(), waking.end(), region) != waking.end()) continue;
    waking.push_back(region);
    const Visit visit = heaps_of_region(region);
    for (Heap* heap : visit.heaps) {
      if (!heap->asleep()) continue;
      heap->prepare_to_wake(graphs_will_touch(*heap));
      sleepers.push_back({heap, heap->aliases()});
    }
  }
  if (waking.empty()) return Status::ok;
  if (const Status status = make_handles(sleepers, missing); status == Status::out_of_memory)
    return status;
  else if (status != Status::ok)
    throw DriverError("the driver refused memory for a region that wakes: " + shared_.driver.last_error());
  const std::lock_guard<Lock> turn(gathering_);
  const auto token = shared_.gate.no_capture(shared_.device);
  try {
    if (!token) raise_captured("wake");
    map_all(sleepers);
  } catch (...) {
    destroy_handles(sleepers);
    throw;
  }
  try {
    for (const RegionId region : waking) {
      const RegionMemory& memory = regions_.at(region);
      if (memory.contents == nullptr) continue;
      const std::vector<SavedBytes> wanted = wanted_of(memory, region);
      Copier(shared_.driver, *token, shared_.device).restore(wanted, *memory.contents);
    }
  } catch (...) {
    for (const Sleeper& sleeper : sleepers) unmap(sleeper.aliases, sleeper.aliases.size());
    destroy_handles(sleepers);
    throw;
  }
  for (const Sleeper& sleeper : sleepers) sleeper.heap->woken(sleeper.aliases);
  std::lock_guard guard(mutex_);
  for (const RegionId region : waking) regions_.erase(region);
  return Status::ok;
}

// Of what was saved, the pages on which something lives still: others may have no memory now.
std::vector<SavedBytes> DeviceHeap::wanted_of(const RegionMemory& memory, RegionId region) const {
  std::vector<SavedBytes> wanted;
  const Visit visit = heaps_of_region(region);
  for (Heap* heap : visit.heaps) {
    if (!heap->asleep()) continue;
    for (const MemoryRun& run : heap->live_runs()) {
      const Address end = run.address + run.bytes;
      auto part = std::upper_bound(memory.saved.begin(), memory.saved.end(), run.address,
                                   [](Address address, const SavedBytes& each) { return address < each.address; });
      if (part != memory.saved.begin()) --part;
      for (; part != memory.saved.end() && part->address < end; ++part) {
        const Address from = std::max(run.address, part->address), to = std::min(end, part->address + part->bytes);
        if (from < to) wanted.push_back({from, to - from, part->at + (from - part->address)});
      }
    }
  }
  return wanted;
}

// Memory is made for all of them before anything is mapped: for all or for none. `missing` is what all of them take.
Status DeviceHeap::make_handles(std::vector<Sleeper>& sleepers, Bytes* missing) {
  *missing = 0;
  for (Sleeper& sleeper : sleepers) {
    std::uint32_t before = 0;
    for (Residency::Alias& alias : sleeper.aliases) {
      alias.handle = 0;
      if (std::exchange(before, alias.span) != alias.span) *missing += alias.pages * kPageBytes;
    }
  }
  for (Sleeper& sleeper : sleepers) {
    const Residency::Alias* before = nullptr;
    for (Residency::Alias& alias : sleeper.aliases) {
      if (before != nullptr && before->span == alias.span) {
        alias.handle = before->handle;
        continue;
      }
      const Status status = shared_.page_supply.make(alias.pages, &alias.handle);
      if (status != Status::ok) {
        alias.handle = 0;
        destroy_handles(sleepers);
        return status;
      }
      before = &alias;
    }
  }
  return Status::ok;
}

bool DeviceHeap::find_room_to_wake(Bytes missing, Effort* effort) {
  // So far that the limit allows it, and the device has it.
  const auto trim_so_much = [&](Wait wait) {
    const std::lock_guard<Lock> turn(gathering_);
    Bytes free_bytes = 0, total_bytes = 0;
    shared_.driver.memory_info(shared_.device, &free_bytes, &total_bytes);
    const Bytes lacking = missing > free_bytes ? missing - free_bytes : 0;
    const auto minus = [](Bytes all, Bytes part) { return all > part ? all - part : 0; };
    const auto reserved = static_cast<Bytes>(shared_.holdings.reserved().current);
    trim_to(std::min(minus(shared_.holdings.limit(), missing), minus(reserved, lacking)), wait);
  };
  switch (effort->rung) {
    case 0:
      trim_so_much(Wait::no);
      effort->rung = 1;
      return true;
    case 1: {
      bool freed = false;
      for (const auto& callback : callbacks_.to_call()) {
        called_back_.fetch_add(1, std::memory_order_relaxed);
        freed |= OomCallbacks::call(*callback, shared_.device, missing);
      }
      trim_so_much(Wait::no);
      const Bytes live = live_bytes();
      if (!freed || live >= effort->least_live) effort->rung = 2;
      effort->least_live = std::min(effort->least_live, live);
      return true;
    }
    case 2:
      trim(0, Wait::yes);
      effort->rung = 3;
      return true;
    default:
      return false;
  }
}

// All or nothing. Access is granted run by run, where neighbours in the list are neighbours in the range.
void DeviceHeap::map_all(std::vector<Sleeper>& sleepers) {
  for (Sleeper& sleeper : sleepers) {
    std::vector<Residency::Alias> by_address = sleeper.aliases;
    std::sort(by_address.begin(), by_address.end(), [](const auto& a, const auto& b) { return a.address < b.address; });
    std::size_t mapped = 0;
    Status status = Status::ok;
    for (; mapped < by_address.size(); ++mapped) {
      const Residency::Alias& alias = by_address[mapped];
      status = shared_.driver.map(shared_.device, alias.address, alias.pages * kPageBytes, alias.handle);
      if (status != Status::ok) break;
    }
    for (std::size_t i = 0; i < mapped && status == Status::ok;) {
      const Address first = by_address[i].address;
      Address end = first;
      for (; i < mapped && by_address[i].address == end; ++i) end += by_address[i].pages * kPageBytes;
      status = shared_.driver.allow_access(shared_.device, first, end - first);
    }
    if (status == Status::ok) continue;
    const std::string problem = shared_.driver.last_error();
    unmap(by_address, mapped);
    for (const Sleeper& before : sleepers) {
      if (&before == &sleeper) break;
      unmap(before.aliases, before.aliases.size());
    }
    throw DriverError("the driver refused to map a region that wakes: " + problem);
  }
}

void DeviceHeap::unmap(const std::vector<Residency::Alias>& aliases, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i)
    shared_.driver.unmap(shared_.device, aliases[i].address, aliases[i].pages * kPageBytes);
}

void DeviceHeap::raise_no_room_to_wake(const std::vector<RegionId>& regions) {
  Bytes asked = 0;
  for (const RegionId region : regions) {
    const Visit visit = heaps_of_region(region);
    for (Heap* heap : visit.heaps) asked += heap->stats().asleep;
  }
  out_of_memory_.fetch_add(1, std::memory_order_relaxed);
  OutOfMemoryFigures figures;
  shared_.driver.memory_info(shared_.device, &figures.free_bytes, &figures.total_bytes);
  figures.asked = asked;
  for (const RegionId region : regions)
    if (asleep(region)) figures.waking += (figures.waking.empty() ? "" : ", ") + quoted(region_names_->tag(region));
  figures.device_name = info_.name;
  figures.stats = stats();
  throw OutOfMemory(describe(figures));
}

// Blocks may be freed while they sleep: their memory need not come back, and what it held is dropped once nothing that
// was saved is left. A page that lives on keeps the contents of all.
void DeviceHeap::forget_freed() {
  std::vector<RegionId> sleeping;
  {
    std::lock_guard guard(mutex_);
    for (const auto& [region, memory] : regions_)
      if (memory.asleep) sleeping.push_back(region);
  }
  for (const RegionId region : sleeping) {
    bool lives = false;
    const Visit visit = heaps_of_region(region);
    for (Heap* heap : visit.heaps) {
      if (!heap->asleep()) continue;
      heap->prepare_to_wake(graphs_will_touch(*heap));
      lives |= !heap->live_runs().empty();
    }
    if (lives) continue;
    std::lock_guard guard(mutex_);
    RegionMemory& memory = regions_[region];
    memory.contents.reset();
    memory.saved.clear();
  }
}

// --- figures -----------------------------------------------------------------------------------------------------

void DeviceHeap::append_regions(std::vector<RegionStats>& stats) const {
  std::lock_guard guard(mutex_);
  std::vector<RegionId> seen;
  for (const auto& pool : pools_)
    if (pool->region != 0 && std::find(seen.begin(), seen.end(), pool->region) == seen.end())
      seen.push_back(pool->region);
  for (const RegionId region : seen) {
    RegionStats& one = stats.emplace_back();
    one.tag = region_names_->tag(region);
    one.device = shared_.device;
    for (const auto& pool : pools_) {
      if (pool->region != region) continue;
      for (const auto& heap : pool->heaps) {
        const HeapStats figures = heap->stats();
        one.requested += static_cast<Bytes>(figures.requested.current);
        one.resident += static_cast<Bytes>(figures.resident.current);
        one.reserved += static_cast<Bytes>(figures.reserved.current);
        one.asleep_bytes += figures.asleep;
        if (keeps_idle(*pool)) one.idle_for_graphs += static_cast<Bytes>(figures.idle.current);
      }
    }
    if (const auto found = regions_.find(region); found != regions_.end()) {
      one.asleep = found->second.asleep;
      if (const Contents* contents = found->second.contents.get()) {
        one.contents_bytes = contents->bytes();
        one.contents = contents->place() == Keep::host ? "host" : "file";
      }
    }
  }
}

}  // namespace poolalloc
