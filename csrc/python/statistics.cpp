// stats.h as nested dicts: the same names, every field.
#include "core/base/stats.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

py::dict to_dict(const Counter& counter) {
  py::dict result;
  result["current"] = counter.current;
  result["peak"] = counter.peak;
  result["total"] = counter.total;
  return result;
}

py::dict to_dict(const BlockStats& blocks) {
  py::dict result;
  result["blocks"] = to_dict(blocks.blocks);
  result["requested"] = to_dict(blocks.requested);
  result["live"] = to_dict(blocks.live);
  result["held_blocks"] = to_dict(blocks.held_blocks);
  result["held"] = to_dict(blocks.held);
  result["reserved"] = to_dict(blocks.reserved);
  result["unused"] = to_dict(blocks.unused);
  result["gaps"] = blocks.gaps;
  return result;
}

py::dict to_dict(const BinStats& bin) {
  py::dict result;
  result["block_bytes"] = bin.block_bytes;
  result["live_blocks"] = bin.live_blocks;
  result["allocations"] = bin.allocations;
  result["requested"] = bin.requested;
  result["rounded"] = bin.rounded;
  result["resident"] = bin.resident;
  return result;
}

// What a heap and a device have in common.
template <typename Stats>
void add_counts(py::dict& result, const Stats& stats) {
#define X(name) result[#name] = to_dict(stats.name);
  POOLALLOC_QUANTITIES(X)
#undef X
#define X(name) result[#name] = stats.name;
  POOLALLOC_EVENTS(X)
#undef X
  result["all"] = to_dict(stats.all);
  result["small"] = to_dict(stats.small);
  result["large"] = to_dict(stats.large);
  result["live_blocks"] = stats.live_blocks;
  result["metadata_bytes"] = stats.metadata_bytes;
}

py::dict to_dict(const HeapStats& heap) {
  py::dict result;
  result["stream"] = heap.stream;
  result["pool"] = py::make_tuple(heap.pool.first, heap.pool.second);
  result["region"] = heap.region.empty() ? py::object(py::none()) : py::object(py::str(heap.region));
  add_counts(result, heap);
  result["arena_rounded"] = heap.arena_rounded;
  result["arena_resident"] = heap.arena_resident;
  result["uncut"] = heap.uncut;
  result["address_space"] = heap.address_space;
  result["mappings"] = heap.mappings;
  result["segments"] = heap.segments;
  result["idle_in_pools"] = heap.idle_in_pools;
  result["asleep"] = heap.asleep;
  py::list bins;
  for (const BinStats& bin : heap.bins) bins.append(to_dict(bin));
  result["bins"] = bins;
  return result;
}

}  // namespace

py::dict to_dict(const DeviceStats& stats) {
  py::dict result;
  result["device"] = stats.device;
  result["total_bytes"] = stats.total_bytes;
  result["limit_bytes"] = stats.limit_bytes;
  result["virtual_memory"] = stats.virtual_memory;
  add_counts(result, stats);
  result["unmapped"] = stats.unmapped;
  result["idle_in_pools"] = stats.idle_in_pools;
  result["asleep"] = stats.asleep;
  result["asleep_host"] = stats.asleep_host;
  result["asleep_file"] = stats.asleep_file;
  py::list heaps;
  for (const HeapStats& heap : stats.heaps) heaps.append(to_dict(heap));
  result["heaps"] = heaps;
  result["driver_calls"] = stats.driver_calls;
  result["driver_work"] = stats.driver_work;
  return result;
}

}  // namespace poolalloc::python
