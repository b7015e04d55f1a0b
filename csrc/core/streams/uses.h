// Which streams still use what: blocks of one heap that streams other than its own use, and the frees that wait for
// those streams (deferred free; `pending` in the figures).
//
// A use is a block and a foreign stream. When a block with uses is freed it joins the queue of each of those streams.
// Work of one stream completes in order, so a queue is one, too: its frees stand in batches, oldest first, and one
// event, recorded behind a batch, answers for all of it. Whoever looks at a queue asks its first event, and the next
// one only if that has completed. A block whose last queue has let go of it is done.
//
// While a stream is being captured no event tells of it. There a batch may have a place in the graph instead: it is
// over for the heap's own stream once that has joined what lies before the place (torch's
// graph_capture_record_stream_reuse).
//
//   waits of a block  = batches it stands in, at most one in each queue
//   pending blocks    = blocks with waits != 0
//   events and places = batches that are recorded; in a queue all recorded batches stand before the others
//
// An event is recorded when a batch is full, or when somebody looks. A large block fills a batch by itself, so the
// event behind it is recorded at its free; small ones share one.
//
// This is bookkeeping alone: a look yields the calls of the driver that are due, one by one, and the heap makes them,
// with its lock or without (heap_pending.cpp). Guarded by the heap's lock, but for pending_hint().
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/base/types.h"
#include "driver/driver.h"

namespace poolalloc {

class Uses {
 public:
  static constexpr std::size_t kBatchBlocks = 64;
  static constexpr Bytes kBatchBytes = Bytes{1} << 20;
  // Calls of the driver in one look. Those that are answered with "completed" pay for themselves, as each retires a
  // batch; of others there is at most one a queue.
  static constexpr int kCalls = 64;
  static constexpr int kCallsOfFree = 4;

  // A call that is due: an event to record behind the work of a stream, or to ask.
  struct Call {
    Stream stream;
    EventHandle event = 0;    // 0: one has to be made
    std::uint64_t batch = 0;  // its number, which no other batch ever has
    bool record = false;
    CapturePlace place;  // in place of the event
  };
  // One look at the queues, by one thread.
  struct Look {
    std::uint64_t number = 0;
    bool may_ask = false;
    bool all = true;     // not only at queues in which a batch is full
    int calls = kCalls;  // left
  };
  struct Done {
    Bytes block = 0;
    Bytes size = 0;
  };

  // --- blocks ------------------------------------------------------------------------------------------------------
  // `stream` uses the block that starts there. False if it is pending.
  bool use(Bytes block, Stream stream);
  bool used(Bytes block) const { return blocks_.contains(block); }
  bool pending(Bytes block) const {
    const auto found = blocks_.find(block);
    return found != blocks_.end() && found->second.size != 0;
  }
  // The block was freed. False if no other stream uses it: then it is done already.
  bool defer(Bytes block, Bytes size);
  // Whether the last free has filled a batch.
  bool full() const { return full_; }

  // --- looking -----------------------------------------------------------------------------------------------------
  Look look(bool may_ask) { return {++looks_, may_ask, true, kCalls}; }
  // After a free that has filled a batch: records it, and asks as much as keeps the queue from growing.
  Look look_at_full(bool may_ask) { return {++looks_, may_ask, false, kCallsOfFree}; }
  // The next call that is due. False if there is none, or the look has made all of its calls.
  bool next(Look& look, Call* call);
  // What came of it: recorded, completed (ok); not_ready also if the stream is being captured. failed of a place: that
  // capture is over. Blocks that are done are appended.
  void settle(const Look& look, const Call& call, Status status, std::vector<Done>* done);

  // --- waiting -----------------------------------------------------------------------------------------------------
  // The last event under way in each queue, after which nothing recorded so far is left.
  std::vector<Call> last_events() const;
  // Batches behind which the driver would record no event: their stream may be gone, but not its work.
  std::vector<Call> refused() const;
  // All work of the stream until the batch was sealed is known to be over.
  void passed(const Call& call, std::vector<Done>* done);

  // --- events ------------------------------------------------------------------------------------------------------
  // One of the device that nobody needs now; 0 if there is none.
  EventHandle take_event(DeviceIndex device);
  void give_event(DeviceIndex device, EventHandle event) {
    if (event != 0) unused_events_.emplace_back(device, event);
  }
  // All of them, those under way too: the end.
  std::vector<std::pair<DeviceIndex, EventHandle>> release_events();

  bool empty() const { return blocks_.empty(); }
  std::size_t pending() const { return pending_; }
  // As of some moment, for whoever does not hold the lock.
  std::size_t pending_hint() const { return hint_.load(std::memory_order_relaxed); }
  Bytes pending_bytes() const;
  Bytes metadata_bytes() const;
  // Throws InvariantViolation if an equation above does not hold.
  void validate() const;

 private:
  struct Block {
    std::vector<Stream> streams;  // that use it, while it is live
    Bytes size = 0;               // not 0: pending
    std::uint32_t waits = 0;
  };
  using Blocks = std::unordered_map<Bytes, Block>;
  using Entry = Blocks::value_type;  // stays where it is as long as the block is known
  struct Batch {
    std::uint64_t number = 0;
    EventHandle event = 0;
    CapturePlace place;
    bool sealed = false;  // takes no more blocks: it is recorded, or somebody is about to
    bool refused = false;
    Bytes bytes = 0;
    std::vector<Entry*> blocks;

    bool recorded() const { return event != 0 || place.capture != 0; }
    bool full() const { return blocks.size() >= kBatchBlocks || bytes >= kBatchBytes; }
  };
  using Batches = std::deque<Batch>;
  struct Queue {
    Stream stream;
    Batches batches;
    std::uint64_t recorded = 0, asked = 0;  // the last look that tried to record; that had "not yet" for an answer
  };

  Queue& queue_of(Stream stream);
  static Batches::iterator place_of(Queue& queue, std::uint64_t number);
  static void join_unrecorded(Queue& queue, const Batches::iterator& batch);
  static void forget_places(Queue& queue);
  void retire(Queue& queue, const Batches::iterator& batch, std::vector<Done>* done);
  void drop_empty_queues();
  void count_pending(std::size_t pending) {
    pending_ = pending;
    hint_.store(pending, std::memory_order_relaxed);
  }

  Blocks blocks_;
  std::vector<Queue> queues_;
  std::size_t turn_ = 0;  // the queue that a look begins with, so that each has its turn
  std::uint64_t looks_ = 0, batches_ = 0;
  std::size_t pending_ = 0;
  bool full_ = false;
  std::vector<std::pair<DeviceIndex, EventHandle>> unused_events_;
  std::atomic<std::size_t> hint_{0};
};

}  // namespace poolalloc
