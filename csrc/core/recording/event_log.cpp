#include "core/recording/event_log.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <system_error>

#include "core/base/errors.h"
#include "core/base/quiet_thread.h"

namespace poolalloc {

namespace {

constexpr char kMagic[] = "poolalloc log 1\n";
constexpr auto kFlushEvery = std::chrono::milliseconds(500);

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

// Why the last system call failed.
std::string last_problem() { return std::generic_category().message(errno); }

// A third of what the monotonic clock costs, where there is one that all processors share.
std::uint64_t now_ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return now_ns();
#endif
}

std::uint32_t thread_number() {
  static thread_local const auto number = static_cast<std::uint32_t>(syscall(SYS_gettid));
  return number;
}

// The bytes of plain figures.
template <typename T>
std::string bytes_of(const T& figures) {
  return {reinterpret_cast<const char*>(&figures), sizeof(figures)};
}

}  // namespace

EventLog::EventLog(const std::string& path, const std::string& header, StackSource stacks)
    : filling_(kChunkEvents + kAhead), stacks_(stacks), file_(std::fopen(path.c_str(), "wbe"), &std::fclose) {
  if (file_ == nullptr) throw UsageError("cannot write " + path + ": " + last_problem());
  std::setvbuf(file_.get(), nullptr, _IONBF, 0);  // chunks are large
  send({Frame::header, header, {}, 0});
  send_clock();
  if (std::fwrite(kMagic, 1, sizeof(kMagic) - 1, file_.get()) != sizeof(kMagic) - 1) problem_ = last_problem();
  writer_ = quiet_thread([this] { write_for_ever(); });
}

void EventLog::close() {
  {
    const BiasedLock::Guard guard(lock_);
    if (closed_) return;
    closed_ = true;
    hand_over();
  }
  {
    const std::lock_guard guard(mutex_);
    closing_ = true;
  }
  work_.notify_one();
  writer_.join();
  file_.reset();
  const BiasedLock::Guard guard(lock_);
  Events().swap(filling_);
  std::vector<PoolId>().swap(pools_);
  const std::lock_guard waiting(mutex_);
  std::vector<Chunk>().swap(waiting_);
  std::vector<Events>().swap(spare_);
}

// Under lock_. Adds `event` with the time and the thread.
inline void EventLog::append(LogEvent event) {
  if (filled_ == kChunkEvents) [[unlikely]]
    hand_over();
  last_ticks_ = std::max(now_ticks(), last_ticks_);
  event.ticks = last_ticks_;
  event.thread = thread_number();
  ++events_;
  LogEvent& place = filling_[filled_++];
  __builtin_prefetch(&place + kAhead, 1);
  place = event;
}

void EventLog::add(TraceOp op, DeviceIndex device, StreamId stream, PoolId pool, Address address, Bytes requested,
                   std::uint32_t stack) {
  const BiasedLock::Guard guard(lock_);
  if (closed_) return;
  std::uint32_t number = 0;
  if (pool != PoolId{}) [[unlikely]] {
    const auto known = std::find(pools_.begin(), pools_.end(), pool);
    number = static_cast<std::uint32_t>(known - pools_.begin()) + 1;
    if (known == pools_.end()) {
      hand_over();
      pools_.push_back(pool);
      send({Frame::pool, bytes_of(pool), {}, 0});
    }
  }
  append({.address = address,
          .requested = requested,
          .stream = stream,
          .pool = number,
          .op = op,
          .device = static_cast<std::uint8_t>(device),
          .stack = stack});
}

std::uint32_t EventLog::add_stack(const std::string& frames) {
  const BiasedLock::Guard guard(lock_);
  if (closed_) return 0;
  send({Frame::stack, frames, {}, 0});
  return ++stack_count_;
}

void EventLog::mark(const std::string& text) {
  const BiasedLock::Guard guard(lock_);
  if (closed_) return;
  hand_over();
  send({Frame::mark, text, {}, 0});
  append({.address = marks_++, .op = TraceOp::mark});
}

void EventLog::pages_came(const HeapId& heap, Address address, Bytes bytes) {
  add(TraceOp::segment_map, heap.device, heap.stream, heap.pool, address, bytes);
}

void EventLog::pages_left(const HeapId& heap, Address address, Bytes bytes) {
  add(TraceOp::segment_unmap, heap.device, heap.stream, heap.pool, address, bytes);
}

void EventLog::spare_changed(DeviceIndex device, Bytes before, Bytes now) {
  if (now > before)
    add(TraceOp::segment_map, device, 0, {}, 0, now - before);
  else
    add(TraceOp::segment_unmap, device, 0, {}, 0, before - now);
}

void EventLog::free_completed(const BlockInfo& block) {
  add(TraceOp::free_completed, block.device, block.stream, block.pool, block.address, block.requested);
}

std::uint64_t EventLog::events() const {
  const BiasedLock::Guard guard(lock_);
  return events_;
}

std::string EventLog::problem() const {
  const std::lock_guard guard(mutex_);
  return problem_;
}

// Under lock_: what is being filled goes to the writer.
void EventLog::hand_over() {
  if (filled_ == 0) return;
  send({Frame::events, {}, std::move(filling_), filled_});
  send_clock();
  filled_ = 0;
  filling_.clear();
  {
    const std::lock_guard waiting(mutex_);
    if (!spare_.empty()) {
      filling_ = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  filling_.resize(kChunkEvents + kAhead);
}

void EventLog::send_clock() {
  const std::uint64_t moment[] = {now_ticks(), now_ns()};
  send({Frame::clock, bytes_of(moment), {}, 0});
}

// After a failure everything is dropped.
void EventLog::send(Chunk chunk) {
  const std::lock_guard waiting(mutex_);
  if (!problem_.empty()) return;
  waiting_.push_back(std::move(chunk));
  backlog_.fetch_add(1, std::memory_order_relaxed);
  work_.notify_one();
}

void EventLog::wait_for_writer() {
  std::unique_lock waiting(mutex_);
  room_.wait(waiting, [this] { return backlog_.load() < kMostChunks || closing_; });
}

void EventLog::write_for_ever() {
  for (bool last = false; !last;) {
    std::vector<Chunk> chunks;
    {
      std::unique_lock waiting(mutex_);
      work_.wait_for(waiting, kFlushEvery, [this] { return closing_ || !waiting_.empty(); });
      last = closing_;
      chunks.swap(waiting_);
    }
    if (chunks.empty() && !last) {  // little happens: the file has the last events too before long
      const BiasedLock::Guard guard(lock_);
      hand_over();
    }
    bool written = true;
    for (const Chunk& chunk : chunks) written = written && write(chunk);
    const std::lock_guard waiting(mutex_);
    for (Chunk& chunk : chunks)
      if (chunk.kind == Frame::events && spare_.size() < kMostSpare) spare_.push_back(std::move(chunk.events));
    if (!written && problem_.empty()) problem_ = last_problem();
    backlog_.fetch_sub(chunks.size(), std::memory_order_relaxed);
    room_.notify_all();
  }
}

bool EventLog::write(const Chunk& chunk) {
  const bool events = chunk.kind == Frame::events;
  const void* payload = events ? static_cast<const void*>(chunk.events.data()) : chunk.payload.data();
  const std::size_t bytes = events ? chunk.count * sizeof(LogEvent) : chunk.payload.size();
  const std::uint32_t head[] = {static_cast<std::uint32_t>(chunk.kind), static_cast<std::uint32_t>(bytes)};
  std::FILE* const file = file_.get();
  return std::fwrite(head, sizeof(head), 1, file) == 1 && std::fwrite(payload, 1, bytes, file) == bytes;
}

}  // namespace poolalloc
