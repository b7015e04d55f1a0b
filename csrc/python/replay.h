// Replays a trace through an Allocator on a modelled device: exact figures, no GPU, as fast as the allocator goes.
// Plain C++. Not for torch's allocators or real devices.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/base/stats.h"
#include "core/options/options.h"
#include "core/plans/plan.h"
#include "python/replay_program.h"

namespace poolalloc::python {

// What a device held after an event.
struct ReplaySample {
  std::uint64_t event = 0;
  DeviceIndex device = 0;
#define X(name) std::int64_t name = 0;
  POOLALLOC_QUANTITIES(X)
#undef X
  std::map<std::string, std::uint64_t> driver_work;  // handles and pages until then; of all devices together
};

// The event at which the trace ran out of memory.
struct ReplayFailure {
  std::uint64_t event = 0;
  DeviceIndex device = 0;
  Bytes bytes = 0;
  std::string text;
};

struct ReplayResult {
  std::uint64_t events = 0;  // done; all of them unless `failure`
  double seconds = 0;        // of a core, for them; the taking of samples is not counted
  std::vector<DeviceStats> devices;
  std::vector<ReplaySample> samples;
  std::optional<ReplayFailure> failure;
  std::vector<Address> placements;  // where each allocation done was placed, in their order; only if asked for
};

// A new allocator with `options`, and `plan` if it is not null, on devices of `memory_bytes` each. `sample_after` are
// numbers of events in increasing order; `placements` costs time and memory only where it is asked for. Peaks of
// requested and live are exact however many streams there are. Throws ConfigError, DriverError, UsageError, and
// InvariantViolation if the allocator's figures or its use of the device turn out to be wrong.
ReplayResult run_replay(const ReplayProgram& program, const Options& options, Bytes memory_bytes,
                        const std::vector<std::uint64_t>& sample_after, bool placements = false,
                        const Plan* plan = nullptr);

}  // namespace poolalloc::python
