// The kinds of a trace's events that native code writes or reads, numbered as in the trace file (docs/trace-format.md,
// poolalloc/_internal/trace/format.py): event_log.h writes them, a replay reads them.
#pragma once

#include <cstdint>

namespace poolalloc {

enum class TraceOp : std::uint8_t {
  alloc = 1,
  free = 2,
  free_completed = 3,
  record_stream = 4,
  segment_map = 7,
  segment_unmap = 8,
  out_of_memory = 9,
  mark = 10,
  release_pool = 12,
  last = release_pool,
  initial = 64,  // of recordings alone: a block that was there when it began
};

}  // namespace poolalloc
