#include "python/replay_program.h"

#include <time.h>

#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>

#include "core/base/errors.h"

namespace poolalloc::python {
namespace {

constexpr int kMaxDevices = 64;

// What becomes of a block between its events.
struct Block {
  enum State : std::uint32_t { none, live, used_elsewhere, freed, done };
  std::uint32_t index = 0;  // its slot; after the free, the number of the free's step
  State state = none;
};

// Blocks by id: an array where ids are dense, as in files of our own, else a hash table.
class BlockTable {
 public:
  BlockTable(std::uint64_t highest, std::size_t count) : dense_(highest < 8 * std::uint64_t{count} + 1024) {
    if (dense_) array_.resize(highest + 1);
  }
  Block& operator[](std::uint64_t id) { return dense_ ? array_[id] : hash_[id]; }

 private:
  const bool dense_;
  std::vector<Block> array_;
  std::unordered_map<std::uint64_t, Block> hash_;
};

class Compiler {
 public:
  Compiler(ReplayProgram& program, const TraceEvent* events, std::size_t count, const std::vector<StreamId>& streams,
           const std::vector<PoolId>& pools)
      : program_(program),
        events_(events),
        streams_(streams),
        pools_(pools),
        blocks_(highest_id(events, count), count) {
    if (count >= ~std::uint32_t{0}) throw UsageError("a trace of 2^32 events or more cannot be replayed");
    program_.steps.resize(count);
  }

  void run() {
    for (std::size_t i = 0; i < program_.steps.size(); ++i) compile(i);
    deal_lanes();
  }

 private:
  static std::uint64_t highest_id(const TraceEvent* events, std::size_t count) {
    std::uint64_t highest = 0;
    for (std::size_t i = 0; i < count; ++i)
      if (events[i].op >= 1 && events[i].op <= 4) highest = std::max<std::uint64_t>(highest, events[i].id);
    return highest;
  }

  [[noreturn]] static void refuse(std::size_t i, const char* problem) {
    throw UsageError("event " + std::to_string(i) + " of the trace " + problem);
  }

  void compile(std::size_t i) {
    const TraceEvent& event = events_[i];
    ReplayStep& step = program_.steps[i];
    switch (static_cast<TraceOp>(event.op)) {
      case TraceOp::alloc: {
        Block& block = blocks_[event.id];
        if (block.state != Block::none) refuse(i, "allocates an id a second time");
        const std::uint32_t place = place_of(i);
        step = {event.requested, take_slot(), StepKind::allocate, place};
        if (program_.places[place].pool_number != 0) step.kind = StepKind::allocate_in_pool;
        block = {step.slot, Block::live};
        break;
      }
      case TraceOp::record_stream: {
        Block& block = blocks_[event.id];
        if (block.state != Block::live && block.state != Block::used_elsewhere)
          refuse(i, "uses a block that is not live");
        block.state = Block::used_elsewhere;
        break;
      }
      case TraceOp::free: {
        Block& block = blocks_[event.id];
        if (block.state != Block::live && block.state != Block::used_elsewhere)
          refuse(i, "frees a block that is not live");
        step = {0, block.index, StepKind::free, 0};
        if (block.state == Block::used_elsewhere) wait_for(static_cast<std::uint32_t>(i), ReplayProgram::kNever);
        free_slots_.push_back(block.index);
        block = {static_cast<std::uint32_t>(i), Block::freed};
        break;
      }
      case TraceOp::free_completed: {
        Block& block = blocks_[event.id];
        if (block.state != Block::freed) refuse(i, "completes a free that was not asked for");
        wait_for(block.index, ++completions_);
        block.state = Block::done;
        step.kind = StepKind::complete;
        break;
      }
      case TraceOp::release_pool:
        step = {0, 0, StepKind::release_pool, place_of(i)};
        break;
      default:
        if (event.op == 0 || event.op > static_cast<std::uint8_t>(TraceOp::last)) refuse(i, "is of an unknown kind");
    }
  }

  void wait_for(std::uint32_t step, std::uint64_t tick) {
    if (program_.steps[step].kind == StepKind::free) pending_.push_back(step);
    program_.steps[step].kind = StepKind::free_pending;
    program_.steps[step].bytes = tick;
  }

  std::uint32_t take_slot() {
    if (free_slots_.empty()) return program_.slots++;
    const std::uint32_t slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }

  // Traces have few places, and runs of events in the same one.
  std::uint32_t place_of(std::size_t i) {
    const TraceEvent& event = events_[i];
    if (event.device < 0 || event.device >= kMaxDevices) refuse(i, "is on a device that cannot be");
    if (event.stream >= streams_.size() || event.pool >= pools_.size())
      refuse(i, "is on a stream or pool not in its table");
    const std::uint64_t key = std::uint64_t{event.stream} << 32 | event.pool;
    if (key == last_key_ && event.device == last_device_) return last_place_;
    const auto next = static_cast<std::uint32_t>(program_.places.size());
    const auto [entry, added] = places_[event.device].try_emplace(key, next);
    if (added) {
      if (next >> 24 != 0) refuse(i, "brings the 2^24th pair of stream and pool");
      const PoolId pool = pools_[event.pool];
      program_.places.push_back({event.device, streams_[event.stream], pool, pool_number(event.device, pool)});
      program_.devices = std::max(program_.devices, event.device + 1);
    }
    last_device_ = event.device;
    last_key_ = key;
    return last_place_ = entry->second;
  }

  std::uint32_t pool_number(DeviceIndex device, PoolId pool) {
    if (pool == PoolId{}) return 0;
    for (const ReplayPlace& place : program_.places)
      if (place.device == device && place.pool == pool) return place.pool_number;
    return program_.pools++;
  }

  // Every pending free gets the lane whose last tick is the latest that is not after its own.
  void deal_lanes() {
    std::sort(pending_.begin(), pending_.end());        // in the order in which they will be asked for
    std::multimap<std::uint64_t, std::uint32_t> lanes;  // by last tick
    for (const std::uint32_t number : pending_) {
      ReplayStep& step = program_.steps[number];
      auto after = lanes.upper_bound(step.bytes);
      if (after == lanes.begin()) {
        step.where = static_cast<std::uint32_t>(program_.lanes.size());
        if (program_.lanes.size() >> 24 != 0) throw UsageError("more than 2^24 frees of the trace wait for each other");
        program_.lanes.push_back(unused_stream());
      } else {
        step.where = std::prev(after)->second;
        lanes.erase(std::prev(after));
      }
      lanes.emplace(step.bytes, std::uint32_t{step.where});
    }
  }

  StreamId unused_stream() {
    while (std::find(streams_.begin(), streams_.end(), next_lane_) != streams_.end()) --next_lane_;
    return next_lane_--;
  }

  ReplayProgram& program_;
  const TraceEvent* events_;
  const std::vector<StreamId>& streams_;
  const std::vector<PoolId>& pools_;
  BlockTable blocks_;
  std::vector<std::uint32_t> free_slots_;
  std::vector<std::uint32_t> pending_;                                    // steps
  std::unordered_map<std::uint64_t, std::uint32_t> places_[kMaxDevices];  // by stream and pool
  std::uint64_t last_key_ = 0;
  int last_device_ = -1;
  std::uint32_t last_place_ = 0;
  std::uint64_t completions_ = 0;
  StreamId next_lane_ = ~StreamId{0};
};

}  // namespace

ReplayProgram::ReplayProgram(const TraceEvent* events, std::size_t count, const std::vector<StreamId>& streams,
                             const std::vector<PoolId>& pools) {
  const double start = core_seconds();
  Compiler compiler(*this, events, count, streams, pools);
  compiler.run();
  seconds = core_seconds() - start;
}

double core_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace poolalloc::python
