// What poolalloc counts, by the words of the manual. All byte figures obey, per bin, pool, stream and device:
//
//   rounded  = live + pending            blocks that cannot be handed out now
//   requested <= live                    asked by the program, before rounding
//   rounded + kept <= resident           kept: in blocks that exact bins hold ready for their next request
//                                        resident: physical pages under at least one such block, kept ones included
//   reserved = resident + idle           idle: physical pages held, under none
//
// Blocks of a region that is asleep are live, and on no page that is held: rounded + kept <= resident + asleep.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/base/types.h"

namespace poolalloc {

// A quantity over time. `total` only grows: what was ever added; what was taken away is total - current.
struct Counter {
  std::int64_t current = 0;
  std::int64_t peak = 0;
  std::uint64_t total = 0;

  void add(Bytes amount) {
    current += static_cast<std::int64_t>(amount);
    total += amount;
    if (current > peak) peak = current;
  }
  void subtract(Bytes amount) { current -= static_cast<std::int64_t>(amount); }
  void move_to(std::int64_t value) {
    if (value > current)
      add(static_cast<Bytes>(value - current));
    else
      current = value;
  }
  void reset_peak() { peak = current; }
};

// All blocks, or one of the two kinds that torch's statistics and snapshots tell apart: small blocks lie in slabs, on
// pages cut into size classes, and large ones on all other pages. So each kind's blocks lie in its own reserved bytes.
struct BlockStats {
  Counter blocks;          // live
  Counter requested;       // bytes asked for
  Counter live;            // their bytes
  Counter held_blocks;     // live and pending
  Counter held;            // their bytes
  Counter reserved;        // of pages under or kept for such blocks
  Counter unused;          // bytes of resident pages in no block, kept or not, which cannot go back to the device
  std::uint64_t gaps = 0;  // how many pieces those are: size-class slabs with room, holes of the arena
};

// A region on one device.
struct RegionStats {
  std::string tag;
  DeviceIndex device = 0;
  bool asleep = false;
  Bytes requested = 0;        // asked for, of live blocks
  Bytes resident = 0;         // pages under blocks
  Bytes reserved = 0;         // pages held
  Bytes asleep_bytes = 0;     // pages given to the device, which waking takes back
  Bytes contents_bytes = 0;   // of them, what waits in the host's memory or in a file
  std::string contents;       // "host" or "file", where contents wait
  Bytes idle_for_graphs = 0;  // idle pages that stay, since a captured graph may touch them; part of reserved
};

// The byte quantities; POOLALLOC_QUANTITIES lists them once for everyone who prints or exports them.
#define POOLALLOC_QUANTITIES(X) X(requested) X(live) X(pending) X(kept) X(resident) X(idle) X(reserved)
#define POOLALLOC_EVENTS(X)                                                                    \
  X(allocations)       /* blocks handed out */                                                 \
  X(frees)             /* blocks given back */                                                 \
  X(pages_created)     /* physical pages taken from the driver */                              \
  X(pages_destroyed)   /* physical pages given back to the driver */                           \
  X(pages_aliased)     /* idle pages mapped at one more address */                             \
  X(pages_stolen)      /* idle pages taken from another stream */                              \
  X(plan_hits)         /* requests served where the plan says */                               \
  X(plan_misses)       /* requests of the sizes in the plan, served elsewhere */               \
  X(plan_resyncs)      /* times the plan was followed again after the program had left it */   \
  X(kept_hits)         /* requests served from kept blocks */                                  \
  X(kept_misses)       /* requests of the sizes of exact bins that found none kept */          \
  X(kept_released)     /* kept blocks given up for other uses of their memory */               \
  X(pending_completed) /* pending frees whose events completed */                              \
  X(waits)             /* times allocation or trimming waited for a stream */                  \
  X(retries)           /* allocations that needed the out-of-memory ladder */                  \
  X(after_unmapping)   /* of them, served once their own mappings were out of the way */       \
  X(after_releasing)   /* of them, served once kept blocks had been given up */                \
  X(after_stealing)    /* of them, served from other streams' idle pages, without a wait */    \
  X(after_callbacks)   /* of them, served once callbacks had freed memory */                   \
  X(after_waiting)     /* of them, served once streams or other threads had been waited for */ \
  X(after_trimming)    /* of them, served once all that was idle had gone to the device */     \
  X(after_lending)     /* of them, served from pools in use whose owners lend */               \
  X(callbacks)         /* times the ladder called a callback */                                \
  X(out_of_memory)     /* allocations that failed after it */

// The rungs of the ladder, in its order: `after_x` counts what was served at rung x.
#define POOLALLOC_RUNGS(X) X(unmapping) X(releasing) X(stealing) X(callbacks) X(waiting) X(trimming) X(lending)
enum class LadderRung {
#define X(name) name,
  POOLALLOC_RUNGS(X)
#undef X
};
#define X(name) +1
inline constexpr std::size_t kLadderRungs = 0 POOLALLOC_RUNGS(X);
#undef X

struct BinStats {
  Bytes block_bytes = 0;
  std::uint64_t live_blocks = 0;  // pending ones included
  std::uint64_t allocations = 0;  // ever
  Bytes requested = 0;
  Bytes rounded = 0;
  Bytes resident = 0;  // slabs under at least one such block
};

struct HeapStats {
  StreamId stream = 0;
  PoolId pool;
  std::string region;  // the tag of the region that it belongs to; empty: none
#define X(name) Counter name;
  POOLALLOC_QUANTITIES(X)
#undef X
#define X(name) std::uint64_t name = 0;
  POOLALLOC_EVENTS(X)
#undef X
  BlockStats all, small, large;
  std::uint64_t live_blocks = 0;  // pending ones included
  Bytes arena_rounded = 0;        // blocks placed in the arena, live and pending
  Bytes arena_resident = 0;       // pages under them
  Bytes uncut = 0;                // of resident pages with slabs, the part in no slab that holds a block:
                                  // resident = sum of bins' resident + uncut + arena_resident
  Bytes address_space = 0;        // addresses ever used by the arena and the slabs
  std::uint64_t mappings = 0;     // pages mapped now, aliases included
  Bytes removable = 0;            // idle memory that can leave: all of it, or segments without a block
  Bytes idle_in_pools = 0;        // idle memory that serves this heap alone, since a graph may use it; part of idle
  Bytes asleep = 0;               // memory that it has given to the device and takes back when its region wakes
  std::uint64_t segments = 0;     // whole allocations held; none where pages are mapped
  std::uint64_t metadata_bytes = 0;
  std::vector<BinStats> bins;  // only bins ever used
};

struct DeviceStats {
  DeviceIndex device = 0;
  Bytes total_bytes = 0;  // of the card
  Bytes limit_bytes = 0;  // what poolalloc may hold of it
#define X(name) Counter name;
  POOLALLOC_QUANTITIES(X)
#undef X
#define X(name) std::uint64_t name = 0;
  POOLALLOC_EVENTS(X)
#undef X
  // With several heaps the peaks of small and large, and of all but requested, live and reserved bytes, are the sums of
  // the heaps' peaks: at least the true ones.
  BlockStats all, small, large;
  std::uint64_t live_blocks = 0;
  std::uint64_t metadata_bytes = 0;
  Bytes unmapped = 0;          // idle pages that belong to no stream now; part of idle
  Bytes idle_in_pools = 0;     // idle memory of private pools that graphs may use; part of idle
  Bytes asleep = 0;            // memory that regions have given to the device and take back when they wake
  Bytes asleep_host = 0;       // contents of it that wait in the host's memory
  Bytes asleep_file = 0;       // and in files
  bool virtual_memory = true;  // pages are mapped where they are needed; else memory comes in whole segments
  std::vector<HeapStats> heaps;
  std::map<std::string, std::uint64_t> driver_calls;  // by kind, whole process
  std::map<std::string, std::uint64_t> driver_work;   // handles and pages by kind, whole process (driver_work.h)
};

}  // namespace poolalloc
