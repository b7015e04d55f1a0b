#include "bridge/history.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "plugin/plugin.h"

namespace poolalloc::bridge {
namespace {

// What this thread says about everything that happens on it.
struct Saying {
  const History::Context* cause = nullptr;  // the innermost Cause's stack
  std::vector<std::string> compile_contexts;
  std::string metadata;
};
// Tensors may die on a thread after its other thread-local objects: then it says nothing, and starts anew.
Saying& saying() {
  static thread_local Saying* here = nullptr;
  struct Sweeper {
    ~Sweeper() { delete std::exchange(here, nullptr); }
  };
  if (here == nullptr) [[unlikely]] {
    here = new Saying;
    static thread_local Sweeper sweeper;
    (void)sweeper;
  }
  return *here;
}

// The action of a mark on one block, which only some versions of torch have.
template <typename Entry>
constexpr std::optional<typename Entry::Action> annotate_action() {
  if constexpr (requires { Entry::ANNOTATE; }) return Entry::ANNOTATE;
  return std::nullopt;
}

HeapId heap_of(const BlockInfo& block) { return {block.device, block.stream, block.pool}; }

// The block that starts there. None in a child of fork(), where poolalloc is closed.
std::optional<BlockInfo> block_at(const void* memory) {
  const auto address = reinterpret_cast<Address>(memory);
  try {
    const auto block = plugin_allocator().block(address);
    if (block && block->address == address) return block;
  } catch (const UsageError&) {
  }
  return std::nullopt;
}

}  // namespace

// --- what the bridge tells ---------------------------------------------------------------------------------------

History& History::instance() {
  static auto* const history = new History;
  return *history;
}

History::Cause::Cause(RecordContext least) : outer_(saying().cause) {
  const History& history = instance();
  const CreateContextFn recorder = history.recorder_.load(std::memory_order_relaxed);
  if (recorder != nullptr && history.when_.load(std::memory_order_relaxed) >= least) context_ = recorder();
  saying().cause = &context_;
}

History::Cause::~Cause() {
  saying().cause = outer_;
  instance().deliver();
}

History::Context History::cause() const {
  const Context* cause = saying().cause;
  return cause != nullptr ? *cause : nullptr;
}

void History::allocated(const void* memory) {
  const auto block = block_at(memory);
  if (!block) return;
  Context context = cause();
  if (context != nullptr) {
    Device& device = devices_[static_cast<std::size_t>(block->device)];
    bool first = false;
    {
      const std::lock_guard guard(device.mutex);
      if (device.contexts.insert_or_assign(block->address, context).second) first = ++held_contexts_ == 1;
    }
    if (first) decide();  // the recording may have ended meanwhile, and without it this stack would never be forgotten
  }
  add_block(TraceEntry::ALLOC, *block, std::move(context));
}

void History::freeing(const void* memory) {
  if (const auto block = block_at(memory); block && !block->pending) freeing(*block);
}

// A free that nothing holds up is completed by the time the address can be handed out again, so both are told now.
void History::freeing(const BlockInfo& block) {
  Context context = cause();
  if (context == nullptr) context = context_of(block.device, block.address);
  add_block(TraceEntry::FREE_REQUESTED, block, context);
  if (block.used_elsewhere) return;
  add_block(TraceEntry::FREE_COMPLETED, block, std::move(context));
  if (forget_context(block.device, block.address)) decide();
}

void History::restored(const std::vector<BlockInfo>& before, std::vector<Address> gone, std::vector<Address> came) {
  std::sort(gone.begin(), gone.end());
  std::sort(came.begin(), came.end());
  const auto among = [](const std::vector<Address>& all, Address one) {
    return std::binary_search(all.begin(), all.end(), one);
  };
  for (const BlockInfo& block : before)
    if (among(gone, block.address) && !among(came, block.address)) freeing(block);
  for (const Address block : came)
    if (!among(gone, block)) allocated(reinterpret_cast<void*>(block));
}

void History::out_of_memory(DeviceIndex device, StreamId stream, Bytes asked, Bytes free_bytes) {
  add(TraceEntry::OOM, {device, stream, {}}, free_bytes, asked, cause());
}

void History::snapshot_taken(DeviceIndex device, PoolId pool, Bytes active) {
  add(TraceEntry::SNAPSHOT, {device, 0, pool}, 0, active, nullptr);
}

void History::annotated(const void* memory, const std::string& text) {
  const auto action = annotate_action<TraceEntry>();
  const auto block = block_at(memory);
  if (!action || !block) return;
  std::string& metadata = saying().metadata;
  std::string own = std::exchange(metadata, text);  // the entry carries this text in place of the thread's
  add_block(*action, *block, cause());
  metadata = std::move(own);
}

void History::annotation(DeviceIndex device, const std::vector<std::pair<std::string, std::string>>& pairs) {
  if (!recording()) return;
  AnnotationEntry entry(device, c10::getApproximateTime());
  for (const auto& [name, value] : pairs) entry.recordUserMetadata(name, value);
  const std::lock_guard guard(mutex_);
  annotations_.add(std::move(entry));
}

void History::push_compile_context(std::string name) { saying().compile_contexts.push_back(std::move(name)); }
void History::pop_compile_context() {
  if (!saying().compile_contexts.empty()) saying().compile_contexts.pop_back();
}
void History::set_metadata(std::string text) { saying().metadata = std::move(text); }
std::string History::metadata() { return saying().metadata; }

// --- what the core tells, under its locks ------------------------------------------------------------------------

void History::pages_came(const HeapId& heap, Address address, Bytes bytes) {
  add(TraceEntry::SEGMENT_MAP, heap, address, bytes, cause());
}

void History::pages_left(const HeapId& heap, Address address, Bytes bytes) {
  add(TraceEntry::SEGMENT_UNMAP, heap, address, bytes, cause());
}

// Pages without an address count from 0 on, where nothing else ever is.
void History::spare_changed(poolalloc::DeviceIndex device, Bytes before, Bytes now) {
  if (now > before)
    add(TraceEntry::SEGMENT_MAP, {device, 0, {}}, before, now - before, cause());
  else
    add(TraceEntry::SEGMENT_UNMAP, {device, 0, {}}, now, before - now, cause());
}

void History::free_completed(const BlockInfo& block) {
  add_block(TraceEntry::FREE_COMPLETED, block, context_of(block.device, block.address));
  forget_context(block.device, block.address);
}

// --- entries -----------------------------------------------------------------------------------------------------

void History::add_block(TraceEntry::Action action, const BlockInfo& block, Context context) {
  add(action, heap_of(block), block.address, block.requested, std::move(context));
}

void History::add(TraceEntry::Action action, const HeapId& heap, Address address, Bytes bytes, Context context) {
  const bool followed = followed_.load(std::memory_order_acquire);
  const bool kept = recording() && (skipped_.load(std::memory_order_relaxed) >> action & 1) == 0;
  if (!kept && !followed) return;
  if (when_.load(std::memory_order_relaxed) < RecordContext::ALLOC) context = nullptr;
  const Saying& said = saying();
  TraceEntry entry(action, static_cast<DeviceIndex>(heap.device), address, bytes, reinterpret_cast<void*>(heap.stream),
                   c10::MempoolId_t{heap.pool.first, heap.pool.second}, c10::getApproximateTime(), std::move(context),
                   said.compile_contexts.empty() ? "N/A" : said.compile_contexts.back(), said.metadata);
  if (followed) {
    const std::lock_guard guard(mutex_);
    undelivered_.push_back(entry);
  }
  if (!kept) return;
  Device& device = devices_[static_cast<std::size_t>(heap.device)];
  const std::lock_guard guard(device.mutex);
  device.entries.add(std::move(entry));
}

// Trackers are called in the order of entries, by one thread at a time, under no lock. An entry that comes meanwhile,
// perhaps from a tracker itself, is delivered by whoever is at it.
void History::deliver() {
  if (!followed_.load(std::memory_order_acquire)) [[likely]]
    return;
  std::unique_lock guard(mutex_);
  if (delivering_) return;
  delivering_ = true;
  while (!undelivered_.empty()) {
    std::vector<TraceEntry> entries;
    entries.swap(undelivered_);
    const std::shared_ptr<const Trackers> trackers = trackers_;
    guard.unlock();
    for (const TraceEntry& entry : entries)
      for (const AllocatorTraceTracker& tracker : *trackers) tracker(entry);
    guard.lock();
  }
  delivering_ = false;
}

bool History::forget_context(DeviceIndex index, Address address) {
  Device& device = devices_[static_cast<std::size_t>(index)];
  const std::lock_guard guard(device.mutex);
  if (device.contexts.erase(address) == 0) return false;
  return --held_contexts_ == 0;
}

History::Context History::context_of(DeviceIndex index, Address address) const {
  const Device& device = devices_[static_cast<std::size_t>(index)];
  const std::lock_guard guard(device.mutex);
  const auto found = device.contexts.find(address);
  return found != device.contexts.end() ? found->second : nullptr;
}

std::unordered_map<Address, History::Context> History::contexts(DeviceIndex index) const {
  const Device& device = devices_[static_cast<std::size_t>(index)];
  const std::lock_guard guard(device.mutex);
  return device.contexts;
}

std::vector<TraceEntry> History::entries(DeviceIndex index) const {
  std::function<c10::time_t(c10::approx_time_t)> nanoseconds;
  {
    const std::lock_guard guard(mutex_);
    if (clock_ == nullptr) return {};
    nanoseconds = clock_->makeConverter();
  }
  const Device& device = devices_[static_cast<std::size_t>(index)];
  std::vector<TraceEntry> entries;
  {
    const std::lock_guard guard(device.mutex);
    entries = device.entries.all();
  }
  for (TraceEntry& entry : entries) entry.time_.t_ = nanoseconds(entry.time_.approx_t_) / 1000;
  return entries;
}

std::vector<AnnotationEntry> History::annotations() const {
  const std::lock_guard guard(mutex_);
  std::vector<AnnotationEntry> entries = annotations_.all();
  if (entries.empty()) return entries;
  const auto nanoseconds = clock_->makeConverter();
  for (AnnotationEntry& entry : entries) entry.time_.t_ = nanoseconds(entry.time_.approx_t_) / 1000;
  return entries;
}

// --- on and off --------------------------------------------------------------------------------------------------

void History::record(bool enabled, CreateContextFn recorder, std::size_t max_entries, RecordContext when, bool clear,
                     const std::vector<std::string>& skip_actions) {
  TORCH_CHECK(when == RecordContext::NEVER || recorder != nullptr, "poolalloc: stacks are wanted, but nobody says how");
  std::uint32_t skipped = 0;
  for (const std::string& action : skip_actions)
    skipped |= 1u << c10::CachingDeviceAllocator::parseTraceEntryAction(action);
  {
    const std::lock_guard guard(mutex_);
    if (enabled && clock_ == nullptr) clock_ = std::make_unique<c10::ApproximateClockToUnixTimeConverter>();
    annotations_.keep(max_entries);
    if (!enabled || clear) annotations_.clear();
  }
  skipped_ = skipped;
  recorder_ = enabled ? recorder : nullptr;
  when_ = enabled ? when : RecordContext::NEVER;
  recording_ = enabled;
  for (Device& device : devices_) {
    const std::lock_guard guard(device.mutex);
    device.entries.keep(max_entries);
    if (!enabled || clear) device.entries.clear();
  }
  decide();
}

void History::follow(AllocatorTraceTracker tracker) {
  {
    const std::lock_guard guard(mutex_);
    if (clock_ == nullptr) clock_ = std::make_unique<c10::ApproximateClockToUnixTimeConverter>();
    auto more = trackers_ != nullptr ? std::make_shared<Trackers>(*trackers_) : std::make_shared<Trackers>();
    more->push_back(std::move(tracker));
    trackers_ = std::move(more);
  }
  followed_ = true;
  decide();
}

// Blocks whose stack is known must be followed to their end, even after the recording's.
void History::decide() {
  decision_.decide([this] { return recording() || followed_ || held_contexts_ != 0; },
                   [this](bool on) {
                     if (on)
                       plugin_allocator().add_observer(*this);
                     else
                       plugin_allocator().remove_observer(*this);
                     on_ = on;
                   });
}

}  // namespace poolalloc::bridge
