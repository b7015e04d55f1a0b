// A pool's checkpoint, heap by heap (placement/checkpoint.h).
#include <algorithm>
#include <mutex>

#include "core/device/device_heap.h"
#include "core/placement/checkpoint.h"

namespace poolalloc {

namespace {

void settle(Heap& heap) {
  if (!heap.settle())
    throw UsageError(
        "a block of this pool was freed while another stream used it, and a CUDA graph is being captured, so there is "
        "no waiting for that stream; make and restore checkpoints outside of captures");
}

}  // namespace

PoolCheckpoint DeviceHeap::checkpoint(PoolId id) {
  PoolCheckpoint result{shared_.device, id, {}};
  const std::lock_guard<Lock> turn(gathering_);
  const Visit visit = heaps_of_pool_in_use(id);
  for (Heap* heap : visit.heaps) {
    settle(*heap);
    result.heaps.push_back({heap->stream(), heap->base(), heap->placed()});
  }
  return result;
}

CheckpointDelta DeviceHeap::restore(const PoolCheckpoint& checkpoint) {
  const std::lock_guard<Lock> turn(gathering_);
  const Visit visit = heaps_of_pool_in_use(checkpoint.pool);
  CheckpointDelta delta;
  for (Heap* heap : visit.heaps)
    if (heap->asleep()) throw UsageError("this pool belongs to a region that is asleep; wake it before it is restored");
  for (Heap* heap : visit.heaps) {
    const auto then = std::find_if(checkpoint.heaps.begin(), checkpoint.heaps.end(), [&](const auto& each) {
      return each.stream == heap->stream() && each.base == heap->base();
    });
    const std::vector<PlacedBlock> before = heap->placed();
    const std::vector<PlacedBlock> wanted = then != checkpoint.heaps.end() ? then->blocks : std::vector<PlacedBlock>{};
    const auto by_offset = [](const PlacedBlock& a, const PlacedBlock& b) { return a.offset < b.offset; };
    const auto minus = [&](const std::vector<PlacedBlock>& from, const std::vector<PlacedBlock>& what) {
      std::vector<PlacedBlock> rest;
      for (const PlacedBlock& block : from) {
        const auto same = std::lower_bound(what.begin(), what.end(), block, by_offset);
        if (same == what.end() || !(*same == block)) rest.push_back(block);
      }
      return rest;
    };
    for (const PlacedBlock& block : before) delta.freed.push_back(heap->address_of(block.offset));
    for (const PlacedBlock& block : minus(before, wanted)) heap->free(heap->address_of(block.offset));
    settle(*heap);
    const Status status = heap->place_again(minus(wanted, before));
    if (status != Status::ok)
      throw DriverError("the blocks of a private pool cannot be put back where they were: " +
                        (status == Status::out_of_memory
                             ? std::string("their memory is missing")
                             : "something else lives there, or " + shared_.driver.last_error()));
    for (const PlacedBlock& block : wanted) delta.allocated.push_back(heap->address_of(block.offset));
  }
  return delta;
}

}  // namespace poolalloc
