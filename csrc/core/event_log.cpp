#include "core/event_log.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "core/errors.h"

namespace poolalloc {

namespace {

constexpr char kMagic[] = "poolalloc log 1\n";
constexpr auto kFlushEvery = std::chrono::milliseconds(500);

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

std::uint32_t thread_number() {
  static thread_local const auto number = static_cast<std::uint32_t>(syscall(SYS_gettid));
  return number;
}

}  // namespace

EventLog::EventLog(const std::string& path, const std::string& header) : file_(std::fopen(path.c_str(), "wbe")) {
  if (file_ == nullptr) throw UsageError("cannot write " + path + ": " + std::strerror(errno));
  std::setvbuf(file_, nullptr, _IONBF, 0);  // chunks are large
  filling_.reserve(kChunkEvents);
  waiting_.push_back({Frame::header, {header.begin(), header.end()}});
  if (std::fwrite(kMagic, 1, sizeof(kMagic) - 1, file_) != sizeof(kMagic) - 1) problem_ = std::strerror(errno);
  writer_ = std::thread([this] { write_for_ever(); });
}

void EventLog::close() {
  {
    const std::lock_guard guard(lock_);
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
  std::fclose(file_);
}

// Under lock_.
LogEvent& EventLog::next_event() {
  if (filling_.size() == kChunkEvents) [[unlikely]]
    hand_over();
  LogEvent& event = filling_.emplace_back();
  last_time_ = event.time_ns = std::max(now_ns(), last_time_);
  event.thread = thread_number();
  ++events_;
  return event;
}

void EventLog::add(LogOp op, DeviceIndex device, StreamId stream, PoolId pool, Address address, Bytes requested) {
  const std::lock_guard guard(lock_);
  if (closed_) return;
  std::uint32_t number = 0;
  if (pool != PoolId{}) [[unlikely]] {
    const auto known = std::find(pools_.begin(), pools_.end(), pool);
    number = static_cast<std::uint32_t>(known - pools_.begin()) + 1;
    if (known == pools_.end()) {
      hand_over();
      pools_.push_back(pool);
      Chunk chunk{Frame::pool, std::vector<char>(sizeof(pool))};
      std::memcpy(chunk.bytes.data(), &pool, sizeof(pool));
      const std::lock_guard waiting(mutex_);
      waiting_.push_back(std::move(chunk));
    }
  }
  LogEvent& event = next_event();
  event.op = op;
  event.device = static_cast<std::uint8_t>(device);
  event.stream = stream;
  event.pool = number;
  event.address = address;
  event.requested = requested;
}

void EventLog::mark(const std::string& text) {
  const std::lock_guard guard(lock_);
  if (closed_) return;
  hand_over();
  {
    const std::lock_guard waiting(mutex_);
    waiting_.push_back({Frame::mark, {text.begin(), text.end()}});
  }
  LogEvent& event = next_event();
  event.op = LogOp::mark;
  event.address = marks_++;
}

std::uint64_t EventLog::events() const {
  const std::lock_guard guard(lock_);
  return events_;
}

std::string EventLog::problem() const {
  const std::lock_guard guard(mutex_);
  return problem_;
}

// Under lock_: what is being filled goes to the writer.
void EventLog::hand_over() {
  std::unique_lock waiting(mutex_);
  room_.wait(waiting, [this] { return waiting_.size() < kMostChunks || !problem_.empty(); });
  hand_over_now(waiting);
}

// After a failure events are dropped.
void EventLog::hand_over_now(std::unique_lock<std::mutex>&) {
  if (!filling_.empty() && problem_.empty()) {
    Chunk chunk{Frame::events, std::vector<char>(filling_.size() * sizeof(LogEvent))};
    std::memcpy(chunk.bytes.data(), filling_.data(), chunk.bytes.size());
    waiting_.push_back(std::move(chunk));
    work_.notify_one();
  }
  filling_.clear();
}

// By the writer, when little happens: the file has the last events too before long. It never waits for those who may
// be waiting for it.
void EventLog::flush() {
  if (!lock_.try_lock()) return;
  {
    std::unique_lock waiting(mutex_);
    hand_over_now(waiting);
  }
  lock_.unlock();
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
    room_.notify_all();
    if (chunks.empty()) flush();
    for (const Chunk& chunk : chunks) {
      if (write(chunk)) continue;
      const std::lock_guard waiting(mutex_);
      if (problem_.empty()) problem_ = std::strerror(errno);
      room_.notify_all();
      break;
    }
  }
}

bool EventLog::write(const Chunk& chunk) {
  const std::uint32_t head[] = {static_cast<std::uint32_t>(chunk.kind), static_cast<std::uint32_t>(chunk.bytes.size())};
  return std::fwrite(head, sizeof(head), 1, file_) == 1 &&
         std::fwrite(chunk.bytes.data(), 1, chunk.bytes.size(), file_) == chunk.bytes.size();
}

}  // namespace poolalloc
