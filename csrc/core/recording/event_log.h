// A recording: what a program asks of the allocator, written to a file while it runs. The file is a stream of frames
// that can be read up to the last one that is whole, so a killed process leaves a recording too.
// poolalloc/_internal/trace/log.py reads it and makes the trace file of it; the two agree on what stands here. Not for
// statistics: stats.h; nor for physical pages: observer.h.
//
//   file   = magic, then frames        frame = kind u32, bytes u32, payload
//   events = records of 48 bytes, in the order in which they took effect
//   clock  = ticks u64, nanoseconds u64: the same moment on the events' cheap clock and on the monotonic one
//   stack  = JSON, [[file, function, line], ...], innermost first; events name stacks by their number, from 1
//
// Adding an event takes one short lock and no system call; a thread of the log writes. Memory is bounded: a request
// that finds kMostChunks waiting for the disk waits too, but never under a lock of the allocator.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/base/biased_lock.h"
#include "core/base/types.h"
#include "core/recording/observer.h"
#include "core/recording/trace_op.h"

namespace poolalloc {

struct LogEvent {
  std::uint64_t ticks = 0;
  Address address = 0;  // mark: its number among the marks. out_of_memory: bytes free on the device
  Bytes requested = 0;
  StreamId stream = 0;
  std::uint32_t thread = 0;  // as the system numbers it
  std::uint32_t pool = 0;    // number in the order of the pool frames; 0 is the ordinary one
  TraceOp op = TraceOp::alloc;
  std::uint8_t device = 0;
  std::uint16_t unused = 0;
  std::uint32_t stack = 0;  // of an allocation: number in the order of the stack frames; 0: not known
};
static_assert(sizeof(LogEvent) == 48);

class EventLog;

// Tells the number that EventLog::add_stack gave to where the calling thread's program is, or 0. Asked before a request
// and under no lock, since it may wait for an interpreter; and only while it may know something, since asking costs as
// much as half an event.
struct StackSource {
  std::uint32_t (*number)(EventLog& log) = nullptr;
  const std::atomic<bool>* knows = nullptr;
};

class POOLALLOC_API EventLog final : public Observer {
 public:
  // `header`: JSON, kept as it is. Throws UsageError if the file cannot be written.
  EventLog(const std::string& path, const std::string& header, StackSource stacks = {});
  ~EventLog() { close(); }
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  // An alloc is added once the block is there, a free before it is gone: so no two blocks ever share an address.
  void add(TraceOp op, DeviceIndex device, StreamId stream, PoolId pool, Address address, Bytes requested,
           std::uint32_t stack = 0);
  void mark(const std::string& text);
  // The calling thread's stack, for the event that it adds next; 0 where stacks are not recorded.
  std::uint32_t stack() {
    const bool asked = stacks_.knows != nullptr && stacks_.knows->load(std::memory_order_relaxed);
    return asked ? stacks_.number(*this) : 0;
  }
  // A stack that has no number yet. Returns its number.
  std::uint32_t add_stack(const std::string& frames);
  // For a thread that holds no lock, before it adds.
  void wait_for_room() {
    if (backlog_.load(std::memory_order_relaxed) >= kMostChunks) [[unlikely]]
      wait_for_writer();
  }
  // Writes what is there and ends the file. What is added later is dropped, so that nobody has to be waited for; so a
  // log that is closed must stay, but it has next to no memory.
  void close();

  void pages_came(const HeapId& heap, Address address, Bytes bytes) override;
  void pages_left(const HeapId& heap, Address address, Bytes bytes) override;
  void spare_changed(DeviceIndex device, Bytes before, Bytes now) override;
  void free_completed(const BlockInfo& block) override;

  std::uint64_t events() const;
  // What went wrong when writing, or nothing. The log stops there.
  std::string problem() const;

 private:
  enum class Frame : std::uint32_t { header = 1, events = 2, mark = 3, pool = 4, clock = 5, stack = 6 };
  using Events = std::vector<LogEvent>;
  struct Chunk {
    Frame kind = Frame::events;
    std::string payload;  // of all but events
    Events events;        // the first `count` of them
    std::size_t count = 0;
  };
  static constexpr std::size_t kChunkEvents = 4096;
  static constexpr std::size_t kMostChunks = 256;  // 48 MiB
  static constexpr std::size_t kMostSpare = 8;
  static constexpr std::size_t kAhead = 8;  // events: how far ahead memory is fetched, even beyond a chunk's end

  void append(LogEvent event);
  [[gnu::noinline]] void hand_over();
  void send(Chunk chunk);
  void send_clock();
  [[gnu::noinline]] void wait_for_writer();
  void write_for_ever();
  bool write(const Chunk& chunk);

  mutable BiasedLock lock_{[this] { return events_; }};  // of the chunk being filled and the tables
  bool closed_ = false;
  Events filling_;
  std::size_t filled_ = 0;
  std::vector<PoolId> pools_;
  std::uint64_t events_ = 0;
  std::uint64_t marks_ = 0;
  std::uint64_t last_ticks_ = 0;
  std::uint32_t stack_count_ = 0;
  const StackSource stacks_;

  mutable std::mutex mutex_;  // of what waits for the writer; taken after lock_, never before
  std::condition_variable work_, room_;
  std::vector<Chunk> waiting_;
  std::vector<Events> spare_;            // written: memory that needs no page fault
  std::atomic<std::size_t> backlog_{0};  // chunks not written yet
  bool closing_ = false;
  std::string problem_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::thread writer_;
};

}  // namespace poolalloc
