// Who uses which memory: finds work that touches memory while other work, on a stream that it does not follow, still
// may.
//
// That is what an allocator does wrong when it gives a block away too early, to another stream or another device. It
// shows only where work takes its time, so uses are kept with POOLALLOC_SIM_LAG alone: copies, fills, and what
// operations (operations.h) read and write. Kernels outside operations are not known to touch anything, nor are graphs.
//
// The simulator's lock guards everything.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace poolalloc::simgpu {

struct Stream;
struct Timeline;

// Work that touched a part of an extent.
struct Use {
  std::uint64_t start;  // in the extent
  std::uint64_t end;
  std::shared_ptr<Timeline> timeline;
  std::uint64_t position;
  std::uint64_t launch;  // the device's count
  std::uint64_t stream;  // its number
  bool write;
  const char* by;
};
using Uses = std::vector<Use>;

// Whether uses are kept at all.
bool uses_are_kept();
// The work enqueued last on a stream touched a range, if that lies on a device. Names a use that it does not follow,
// where one of the two writes. `by` must stay valid.
void note_use(Stream& stream, std::uint64_t address, std::uint64_t size, bool write, const char* by);

}  // namespace poolalloc::simgpu
