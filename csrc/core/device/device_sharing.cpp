// Blocks of a device that are named to other processes (heap/sharing.h).
#include <algorithm>

#include "core/base/errors.h"
#include "core/device/device_heap.h"

namespace poolalloc {

SharedBlock DeviceHeap::share(Address address) {
  if (addresses_.find(address)->segmented())
    throw UsageError(
        "memory in whole allocations (option segments, or of a pool's own allocator) has no pages that could be named");
  if (!info_.shareable)
    throw UsageError("device " + std::to_string(shared_.device) + " (" + info_.name +
                     ") cannot share memory with other processes: its driver exports no file descriptors");
  const auto block = addresses_.find(address)->share(address);
  if (!block) throw UsageError("this address lies in no live block, so it cannot be shared");
  return *block;
}

bool DeviceHeap::export_pieces(const SharedBlock& block, std::size_t first, std::size_t count,
                               std::vector<SharedPiece>* shared) {
  // A heap of a pool could go while it is asked, if the name is stale: not while it is visited.
  const Visit visit = all_heaps();
  const auto heap = std::find(visit.heaps.begin(), visit.heaps.end(), addresses_.find(block.block));
  std::vector<PageTable::Piece> pieces;
  if (heap == visit.heaps.end() || !(*heap)->shared_pieces(block, &pieces)) return false;
  const PageIndex from = pieces.front().start + static_cast<PageIndex>(first);
  const auto wanted =
      std::find_if(pieces.begin(), pieces.end(), [&](const auto& piece) { return piece.start == from; });
  for (auto piece = wanted; piece != pieces.end() && shared->size() < count; ++piece) {
    SharedPiece made{-1, piece->pages};
    if (shared_.driver.export_handle(shared_.device, piece->handle, &made.descriptor) != Status::ok)
      throw DriverError("memory cannot be shared: " + shared_.driver.last_error());
    shared->push_back(made);
  }
  // Only if the block has lived all the time were those its pieces.
  pieces.clear();
  return !shared->empty() && (*heap)->shared_pieces(block, &pieces);
}

}  // namespace poolalloc
