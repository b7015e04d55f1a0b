// A trace's events made ready to be replayed many times: ids become slots of a small table, so that the replay itself
// looks nothing up. Plain C++; replay.h runs it, replay_binding.cpp shows it to Python.
//
// A free whose memory came back later (a `free_completed` that lags, or a use recorded on another stream) is a
// *pending* free. The n-th `free_completed` of the trace happens at tick n of the model's clock, and a pending free
// waits for the tick of its own. Because events recorded on one stream complete in order, pending frees are dealt out
// to *lanes*, made-up streams on each of which the ticks never decrease.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/types.h"
#include "core/recording/trace_op.h"

namespace poolalloc::python {

// One event as it stands in the trace file (docs/trace-format.md), 51 bytes, little endian.
struct [[gnu::packed]] TraceEvent {
  std::uint64_t time_ns;
  std::uint8_t op;
  std::int16_t device;
  std::uint32_t stream, thread, pool;
  std::uint64_t id, requested, rounded;
  std::uint32_t stack;
};
static_assert(sizeof(TraceEvent) == 51);

enum class StepKind : std::uint8_t { none, allocate, allocate_in_pool, free, free_pending, complete, release_pool };

struct ReplayStep {
  Bytes bytes = 0;         // allocate: asked for; free_pending: the tick it waits for
  std::uint32_t slot = 0;  // where the block's address is kept
  StepKind kind = StepKind::none;
  std::uint32_t where : 24 = 0;  // free_pending: its lane; else an index into places
};
static_assert(sizeof(ReplayStep) == 16);

struct ReplayPlace {
  DeviceIndex device = 0;
  StreamId stream = 0;
  PoolId pool;
  std::uint32_t pool_number = 0;  // of this pool on this device; 0 is the ordinary pool
};

struct ReplayProgram {
  // The tick of frees that no `free_completed` of the trace belongs to.
  static constexpr std::uint64_t kNever = std::uint64_t{1} << 40;

  // `streams` and `pools` are the trace's tables. Throws UsageError for what poolalloc.analysis.trace would have
  // refused.
  ReplayProgram(const TraceEvent* events, std::size_t count, const std::vector<StreamId>& streams,
                const std::vector<PoolId>& pools);

  std::vector<ReplayStep> steps;  // one for each event
  std::vector<ReplayPlace> places;
  std::vector<StreamId> lanes;
  std::uint32_t pools = 1;  // numbers of pools in use
  std::uint32_t slots = 0;  // most blocks live at once
  int devices = 1;          // 1 + the highest device
  double seconds = 0;       // of a core, that this took
};

// The processor time this thread has used: unlike the time of day, the same on a busy machine as on an idle one.
double core_seconds();

}  // namespace poolalloc::python
