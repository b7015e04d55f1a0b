#include "core/allocator.h"

#include <algorithm>
#include <chrono>
#include <sstream>

#include "core/base/caretaker.h"
#include "core/device/device_heap.h"
#include "core/streams/capture.h"
#include "driver/counting_driver.h"

namespace poolalloc {

Allocator::Allocator(Driver& driver, const Options& options, const Plan* plan)
    : options_(options),
      plan_(plan != nullptr ? std::make_unique<const Plan>(*plan) : nullptr),
      driver_(std::make_unique<CountingDriver>(driver)),
      gate_(std::make_unique<CaptureGate>(*driver_)),
      addresses_(std::make_unique<AddressTable>()),
      fraction_(options.memory_fraction) {
  check_options(options_);
  if (plan_ != nullptr) check_plan(*plan_);
}

Allocator::~Allocator() {
  // In a child of fork() the thread may have left locks of heaps behind, which nobody will unlock: they stay as they
  // are.
  const bool locked = caretaker_ != nullptr && !caretaker_->here();
  caretaker_.reset();
  for (auto& slot : heaps_)
    if (!locked) delete slot.load();
}

DeviceHeap* Allocator::existing(DeviceIndex device) const {
  return device >= 0 && device < kMaxDevices ? heaps_[device].load(std::memory_order_acquire) : nullptr;
}

DeviceHeap& Allocator::device_heap(DeviceIndex device) {
  if (DeviceHeap* heap = existing(device)) [[likely]]
    return *heap;
  return make_device_heap(device);
}

DeviceHeap& Allocator::make_device_heap(DeviceIndex device) {
  check_device(device);
  std::lock_guard guard(mutex_);
  if (DeviceHeap* heap = existing(device)) return *heap;
  auto heap =
      std::make_unique<DeviceHeap>(*driver_, device, *addresses_, *gate_, oom_callbacks_, options_, plan_.get());
  heap->observe(observers_.empty() ? nullptr : &observers_);
  const Wanted wanted = wanted_[device];
  const double fraction = wanted.fraction.value_or(fraction_);
  if (fraction != options_.memory_fraction) heap->set_fraction(fraction);
  if (wanted.limit) heap->set_limit(*wanted.limit);
  heap->want_segments(segments_wanted_);
  for (int i = 0; i < in_regions_; ++i) heap->enter_region();
  heap->set_regions(&regions_, [this](RegionId region) {
    if (!options_.wake_on_allocate)
      throw UsageError("the region " + quoted(regions_.tag(region)) +
                       " is asleep, so nothing can be allocated in it; wake it first, or set the option "
                       "wake_on_allocate");
    wake_regions({region});
  });
  heap->preallocate();
  if (tended(options_)) {
    if (caretaker_ == nullptr) {
      const double seconds = options_.trim_after != 0 ? std::clamp(options_.trim_after / 4, 0.001, 0.1) : 0.1;
      caretaker_ = std::make_unique<Caretaker>(std::chrono::nanoseconds(static_cast<std::int64_t>(seconds * 1e9)),
                                               [this] { tend(); });
    }
    heap->watch_reserve([this] { caretaker_->wake(); });
  }
  DeviceHeap& made = *heap.release();
  heaps_[device].store(&made, std::memory_order_release);
  if (caretaker_ != nullptr) caretaker_->wake();
  return made;
}

void Allocator::tend() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  for (DeviceIndex device : devices())
    existing(device)->tend(static_cast<std::uint64_t>(std::chrono::nanoseconds(now).count()));
}

std::uint64_t Allocator::caretaker_rounds() const {
  std::lock_guard guard(mutex_);
  return caretaker_ != nullptr ? caretaker_->rounds() : 0;
}

void Allocator::check_device(DeviceIndex device) const {
  const int count = driver_->device_count();
  if (device < 0 || device >= count || device >= kMaxDevices)
    throw UsageError("no device " + std::to_string(device) + "; this machine has " + std::to_string(count));
}

Address Allocator::allocate(Bytes bytes, DeviceIndex device, StreamId stream) {
  if (bytes == 0) return 0;
  if (EventLog* log = log_.load(std::memory_order_acquire)) [[unlikely]]
    return allocate_logged(*log, bytes, device, stream);
  return device_heap(device).allocate(bytes, stream);
}

void Allocator::free(Address address) {
  if (address == 0) return;
  if (EventLog* log = log_.load(std::memory_order_acquire)) [[unlikely]]
    log->add(TraceOp::free, 0, 0, {}, address, 0);
  Heap* heap = addresses_->find(address);
  if (heap == nullptr || !heap->free(address)) [[unlikely]]
    unknown(address);
}

void Allocator::record_stream(Address address, Stream stream) {
  if (address == 0) return;
  Heap* heap = addresses_->find(address);
  if (heap == nullptr || !heap->record_stream(address, stream)) unknown(address);
  if (EventLog* log = log_.load(std::memory_order_acquire))
    log->add(TraceOp::record_stream, stream.device, stream.id, {}, address, 0);
}

void Allocator::unknown(Address address) const {
  std::ostringstream text;
  text << "0x" << std::hex << address << " is not the start of a live block of poolalloc";
  throw UsageError(text.str());
}

std::optional<DeviceIndex> Allocator::device_of(StreamId stream) {
  DeviceIndex device = 0;
  return driver_->stream_device(stream, &device) == Status::ok ? std::optional(device) : std::nullopt;
}

Address Allocator::base_allocation(Address address, Bytes* bytes) const {
  const auto found = block(address);
  if (!found) return 0;
  if (bytes != nullptr) *bytes = found->rounded;
  return found->address;
}

std::optional<BlockInfo> Allocator::block(Address address) const {
  Heap* heap = addresses_->find(address);
  return heap != nullptr ? heap->block(address) : std::nullopt;
}

Address Allocator::whole_allocation(Address address) const {
  const Heap* heap = addresses_->find(address);
  if (heap == nullptr || !heap->segmented() || !heap->block(address)) return 0;
  const auto segment = heap->segment(address);
  return segment ? segment->allocation : 0;
}

std::vector<BlockInfo> Allocator::blocks(DeviceIndex device, PoolId pool) const {
  const DeviceHeap* heap = existing(device);
  return heap != nullptr ? heap->blocks(pool) : std::vector<BlockInfo>{};
}

bool Allocator::owns(Address address) const { return addresses_->find(address) != nullptr; }

Bytes Allocator::empty_cache() {
  if (!regions_.none()) forget_freed();
  Bytes bytes = 0;
  for (DeviceIndex device : devices()) bytes += existing(device)->trim(0, Wait::yes);
  return bytes;
}

Bytes Allocator::empty_cache(PoolId pool) {
  Bytes bytes = 0;
  for (DeviceIndex device : devices()) bytes += existing(device)->empty_cache(pool);
  return bytes;
}

DeviceLayout Allocator::layout(DeviceIndex device) const {
  const DeviceHeap* heap = existing(device);
  return heap != nullptr ? heap->layout() : DeviceLayout{};
}

void Allocator::add_observer(Observer& observer) {
  std::lock_guard guard(mutex_);
  observers_.add(observer);
  tell_observers();
}

void Allocator::remove_observer(Observer& observer) {
  std::lock_guard guard(mutex_);
  observers_.remove(observer);
  tell_observers();
}

// Under mutex_.
void Allocator::tell_observers() {
  for (DeviceIndex device : devices()) existing(device)->observe(observers_.empty() ? nullptr : &observers_);
}

namespace {
void check_fraction(double fraction) {
  if (!(fraction >= 0 && fraction <= 1))
    throw UsageError("memory fraction " + std::to_string(fraction) + " is not in [0, 1]");
}
}  // namespace

void Allocator::set_memory_fraction(double fraction, DeviceIndex device) {
  check_fraction(fraction);
  check_device(device);
  {
    std::lock_guard guard(mutex_);
    wanted_[device].fraction = fraction;
  }
  if (DeviceHeap* heap = existing(device)) heap->set_fraction(fraction);
}

void Allocator::set_memory_fraction(double fraction) {
  check_fraction(fraction);
  {
    std::lock_guard guard(mutex_);
    fraction_ = fraction;
    for (Wanted& wanted : wanted_) wanted.fraction.reset();
  }
  for (DeviceIndex device : devices()) existing(device)->set_fraction(fraction);  // may call a pool's own allocator
}

double Allocator::memory_fraction(DeviceIndex device) const {
  if (const DeviceHeap* heap = existing(device)) return heap->fraction();
  std::lock_guard guard(mutex_);
  if (device < 0 || device >= kMaxDevices) return fraction_;
  return wanted_[device].fraction.value_or(fraction_);
}

Bytes Allocator::trim(Bytes target, DeviceIndex device, bool wait) {
  if (DeviceHeap* heap = existing(device)) return heap->trim(target, wait ? Wait::yes : Wait::no);
  check_device(device);
  return 0;
}

void Allocator::set_memory_limit(Bytes bytes, DeviceIndex device) {
  if (bytes != 0 && bytes < kPageBytes)
    throw UsageError("a memory limit of " + format_bytes(bytes) + " is less than one page of " +
                     format_bytes(kPageBytes) + ", so nothing could be allocated");
  check_device(device);
  {
    std::lock_guard guard(mutex_);
    wanted_[device].limit = bytes;
  }
  if (DeviceHeap* heap = existing(device)) heap->set_limit(bytes);
}

Bytes Allocator::memory_limit(DeviceIndex device) const {
  if (const DeviceHeap* heap = existing(device)) return heap->limit();
  std::lock_guard guard(mutex_);
  if (device < 0 || device >= kMaxDevices) return options_.memory_limit;
  return wanted_[device].limit.value_or(options_.memory_limit);
}

void Allocator::allow_peer(DeviceIndex device, DeviceIndex peer) {
  check_device(device);
  check_device(peer);
  if (device == peer) return;
  driver_->allow_peer(device, peer);  // first, so that no mapping falls between
  DeviceHeap* heap = existing(device);
  if (heap == nullptr) return;
  try {
    heap->allow_access_to_mapped(peer);
  } catch (const DriverError&) {
    driver_->forget_peer(device, peer);  // else every mapping from now on would be refused, too
    throw;
  }
}

SharedBlock Allocator::share(Address address) {
  if (const auto block = this->block(address)) return existing(block->device)->share(address);
  throw UsageError("this address lies in no live block of poolalloc, so it cannot be shared");
}

bool Allocator::export_pieces(const SharedBlock& block, std::size_t first, std::size_t count,
                              std::vector<SharedPiece>* pieces) {
  DeviceHeap* heap = existing(block.device);
  return heap != nullptr && heap->export_pieces(block, first, count, pieces);
}

Address Allocator::open_shared(DeviceIndex device, std::size_t pages,
                               const std::function<SharedPiece(std::size_t)>& piece_at) {
  return device_heap(device).open_memory().open(pages, piece_at);
}

void Allocator::close_shared(DeviceIndex device, Address address) {
  if (DeviceHeap* heap = existing(device)) heap->open_memory().close(address);
}

void Allocator::begin_allocate_to_pool(DeviceIndex device, PoolId pool, std::function<bool(StreamId)> filter,
                                       bool suspect) {
  device_heap(device).begin_allocate_to_pool(pool, std::move(filter), suspect ? Routing::suspect : Routing::announced);
  if (suspect) let_calls_finish();
}

// When this returns, no thread is in the middle of a call that a capture forbids.
void Allocator::begin_capture(DeviceIndex device) {
  gate_->begin(device);
  let_calls_finish();
}

void Allocator::end_capture(DeviceIndex device) { gate_->end(device); }

void Allocator::set_reuse_in_captures(bool reuse) { gate_->set_reuse(reuse); }

void Allocator::want_segments(bool wanted) {
  std::lock_guard guard(mutex_);
  segments_wanted_ = wanted;
  for (const DeviceIndex device : devices()) existing(device)->want_segments(wanted);
}

void Allocator::let_calls_finish() {
  for (const DeviceIndex device : devices()) existing(device)->let_calls_finish();
}

void Allocator::end_allocate_to_pool(DeviceIndex device, PoolId pool) {
  device_heap(device).end_allocate_to_pool(pool);
}

void Allocator::retain_pool(DeviceIndex device, PoolId pool, std::shared_ptr<SegmentSource> source) {
  device_heap(device).retain_pool(pool, std::move(source));
}

int Allocator::pool_users(DeviceIndex device, PoolId pool) const {
  const DeviceHeap* heap = existing(device);
  return heap != nullptr ? heap->pool_users(pool) : 0;
}

void Allocator::set_pool_use_on_oom(DeviceIndex device, PoolId pool, bool use) {
  device_heap(device).set_pool_use_on_oom(pool, use);
}

void Allocator::set_pool_no_split(DeviceIndex device, PoolId pool) { device_heap(device).set_pool_no_split(pool); }

void Allocator::expect_graphs(DeviceIndex device, PoolId pool) { device_heap(device).expect_graphs(pool); }

PoolCheckpoint Allocator::checkpoint(DeviceIndex device, PoolId pool) { return device_heap(device).checkpoint(pool); }

CheckpointDelta Allocator::restore(const PoolCheckpoint& checkpoint) {
  CheckpointDelta delta = device_heap(checkpoint.device).restore(checkpoint);
  if (EventLog* log = log_.load(std::memory_order_acquire)) {
    for (const Address address : delta.freed) log->add(TraceOp::free, 0, 0, {}, address, 0);
    for (const Address address : delta.allocated)
      if (const auto found = block(address))
        log->add(TraceOp::alloc, found->device, found->stream, found->pool, address, found->requested);
  }
  return delta;
}

void Allocator::release_pool(DeviceIndex device, PoolId pool) {
  device_heap(device).release_pool(pool);
  if (EventLog* log = log_.load(std::memory_order_acquire); log != nullptr && pool_users(device, pool) == 0)
    log->add(TraceOp::release_pool, device, 0, pool, 0, 0);
}

// --- regions -----------------------------------------------------------------------------------------------------

void Allocator::enter_region(const std::optional<std::string>& tag) {
  Regions::enter(tag ? regions_.id_of(*tag) : 0);
  std::lock_guard guard(mutex_);
  ++in_regions_;
  for (const DeviceIndex device : devices()) existing(device)->enter_region();
}

void Allocator::leave_region() {
  Regions::leave();
  std::lock_guard guard(mutex_);
  if (in_regions_ == 0) return;
  --in_regions_;
  for (const DeviceIndex device : devices()) existing(device)->leave_region();
}

void Allocator::sleep(const std::vector<std::string>& tags, Keep keep, const std::string& folder) {
  const std::vector<RegionId> regions = regions_.find(tags);
  forget_freed();
  const std::lock_guard turn(sleeping_);
  std::vector<std::pair<DeviceHeap*, RegionId>> done;
  try {
    for (const RegionId region : regions)
      for (const DeviceIndex device : devices()) {
        DeviceHeap& heap = *existing(device);
        if (!heap.has_region(region) || heap.asleep(region)) continue;
        Bytes room = ~Bytes{0};
        if (options_.sleep_host_limit != 0) {
          Bytes taken = 0;
          for (const DeviceIndex each : devices()) taken += existing(each)->host_bytes();
          room = options_.sleep_host_limit > taken ? options_.sleep_host_limit - taken : 0;
        }
        heap.sleep(region, keep, folder, room);
        done.emplace_back(&heap, region);
      }
  } catch (...) {
    Bytes missing = 0;
    for (const auto& [heap, region] : done) heap->wake({region}, &missing);  // its memory was given back a moment ago
    throw;
  }
}

void Allocator::wake(const std::vector<std::string>& tags) { wake_regions(regions_.find(tags)); }

// Device by device; on one, all or none. Where a later one has no room, those before go back to sleep.
void Allocator::wake_regions(const std::vector<RegionId>& regions) {
  struct Woken {
    DeviceHeap* heap;
    RegionId region;
    Keep keep;
    std::string folder;
  };
  std::vector<Woken> woken;
  try {
    for (const DeviceIndex device : devices()) {
      DeviceHeap& heap = *existing(device);
      DeviceHeap::Effort effort;
      for (;;) {
        Bytes missing = 0;
        {
          const std::lock_guard turn(sleeping_);
          std::vector<Woken> here;
          for (const RegionId region : regions)
            if (const auto kept = heap.kept(region)) here.push_back({&heap, region, kept->first, kept->second});
          if (heap.wake(regions, &missing) == Status::ok) {
            woken.insert(woken.end(), here.begin(), here.end());
            break;
          }
        }
        if (!heap.find_room_to_wake(missing, &effort)) heap.raise_no_room_to_wake(regions);
      }
    }
  } catch (...) {
    const std::lock_guard turn(sleeping_);
    for (const Woken& each : woken) each.heap->sleep(each.region, each.keep, each.folder, ~Bytes{0});
    throw;
  }
}

// Not while a region is on its way, which may take seconds.
void Allocator::forget_freed() const {
  const std::unique_lock turn(sleeping_, std::try_to_lock);
  if (!turn.owns_lock()) return;
  for (const DeviceIndex device : devices()) existing(device)->forget_freed();
}

std::vector<RegionStats> Allocator::regions() const {
  forget_freed();
  std::vector<RegionStats> stats;
  for (const DeviceIndex device : devices()) existing(device)->append_regions(stats);
  return stats;
}

// --- recording ---------------------------------------------------------------------------------------------------

Address Allocator::allocate_logged(EventLog& log, Bytes bytes, DeviceIndex device, StreamId stream) {
  log.wait_for_room();
  const std::uint32_t stack = log.stack();
  try {
    const Address address = device_heap(device).allocate(bytes, stream);
    log.add(TraceOp::alloc, device, stream, addresses_->find(address)->pool(), address, bytes, stack);
    return address;
  } catch (const OutOfMemory&) {
    log.add(TraceOp::out_of_memory, device, stream, {}, 0, bytes, stack);
    throw;
  }
}

void Allocator::start_log(const std::string& path, const std::string& header, StackSource stacks) {
  std::lock_guard guard(mutex_);
  if (log_.load(std::memory_order_relaxed) != nullptr)
    throw UsageError("a recording is going on already; stop it first");
  logs_.push_back(std::make_unique<EventLog>(path, header, stacks));
  EventLog& log = *logs_.back();
  observers_.add(log);
  tell_observers();
  log_.store(&log, std::memory_order_release);
  // A block that comes now is in the log twice; its alloc tells the reader to forget it here.
  for (DeviceIndex device : devices())
    for (const HeapLayout& part : layout(device).heaps)
      for (const BlockInfo& block : part.blocks)
        if (!block.pending) log.add(TraceOp::initial, device, block.stream, block.pool, block.address, block.requested);
}

std::uint64_t Allocator::stop_log() {
  std::lock_guard guard(mutex_);
  EventLog* log = log_.exchange(nullptr);
  if (log == nullptr) throw UsageError("there is no recording to stop");
  observers_.remove(*log);
  tell_observers();
  log->close();
  if (const std::string problem = log->problem(); !problem.empty())
    throw UsageError("the recording could not be written to its end: " + problem);
  return log->events();
}

void Allocator::mark(const std::string& text) {
  if (EventLog* log = log_.load(std::memory_order_acquire)) log->mark(text);
}

std::vector<DeviceIndex> Allocator::devices() const {
  std::vector<DeviceIndex> used;
  for (DeviceIndex device = 0; device < kMaxDevices; ++device)
    if (existing(device) != nullptr) used.push_back(device);
  return used;
}

DeviceStats Allocator::stats(DeviceIndex device) const {
  DeviceStats stats;
  if (const DeviceHeap* heap = existing(device)) {
    if (!regions_.none()) forget_freed();
    stats = heap->stats();
  } else {
    check_device(device);
    stats.device = device;
    std::lock_guard guard(mutex_);
    const Wanted& wanted = wanted_[device];
    DeviceInfo info;
    if ((wanted.fraction || wanted.limit) && driver_->device_info(device, &info) == Status::ok) {
      stats.total_bytes = info.total_bytes;
      stats.limit_bytes = DeviceHeap::limit_of(wanted.fraction.value_or(fraction_),
                                               wanted.limit.value_or(options_.memory_limit), info.total_bytes);
    }
  }
  stats.driver_calls = driver_->calls();
  stats.driver_work = driver_->work();
  return stats;
}

void Allocator::reset_peak_stats(DeviceIndex device) {
  if (DeviceHeap* heap = existing(device))
    heap->reset_peaks();
  else
    check_device(device);
}

void Allocator::validate() const {
  for (DeviceIndex device : devices()) existing(device)->validate();
}

}  // namespace poolalloc
