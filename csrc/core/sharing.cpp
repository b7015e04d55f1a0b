// See sharing.h. What is named, heap by heap; then what is open.
#include "core/sharing.h"

#include <algorithm>
#include <atomic>

#include "core/device_heap.h"
#include "core/errors.h"
#include "core/heap.h"

namespace poolalloc {

// --- named to others ---------------------------------------------------------------------------------------------

std::optional<SharedBlock> Heap::share(Address address) {
  static std::atomic<std::uint64_t> last_id{0};
  const auto block = this->block(address);
  if (!block) return std::nullopt;
  const Bytes offset = block->address - base_;
  const Guard guard(*this);
  const Found found = find(offset);
  if (found.size == 0) return std::nullopt;
  if (uses_.pending(offset)) return std::nullopt;
  std::uint64_t& name = names_[offset];
  set_attention();
  if (name == 0) name = ++last_id;
  std::vector<PageTable::Piece> pieces;
  pages_.pieces(static_cast<PageIndex>(offset / kPageBytes),
                static_cast<PageIndex>((offset + found.size - 1) / kPageBytes), &pieces);
  const Bytes first = pieces.front().start * kPageBytes;
  const Bytes end = (Bytes{pieces.back().start} + pieces.back().pages) * kPageBytes;
  return SharedBlock{shared_.device, base_ + first, end - first, name, base_ + offset};
}

bool Heap::shared_pieces(const SharedBlock& block, std::vector<PageTable::Piece>* pieces) const {
  const Guard guard(*this);
  const Bytes offset = block.block - base_;
  const auto name = names_.find(offset);
  if (name == names_.end() || name->second != block.id) return false;
  const Bytes size = find(offset).size;
  if (size == 0 || !pages_.pieces(static_cast<PageIndex>(offset / kPageBytes),
                                  static_cast<PageIndex>((offset + size - 1) / kPageBytes), pieces))
    return false;
  return block.pages == address_of(pieces->front().start * kPageBytes);
}

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

// --- open of others ----------------------------------------------------------------------------------------------

// No work may come through the mappings any more.
OpenMemory::~OpenMemory() {
  for (const Range& range : ranges_) drop(NoCapture::unchecked(), range, range.bytes);
}

Address OpenMemory::open(std::size_t pages, const std::function<SharedPiece(std::size_t)>& piece_at) {
  close_what_is_closing();
  Driver& driver = shared_.driver;
  const DeviceIndex device = shared_.device;
  Range range{0, pages * kPageBytes, false};
  Bytes mapped = 0;
  const auto check = [&](Status status) {
    if (status != Status::ok) throw DriverError("memory of another process cannot be opened: " + driver.last_error());
  };
  try {
    check(driver.reserve(device, range.bytes, kPageBytes, &range.address));
    while (mapped < range.bytes) {
      PhysicalHandle handle = 0;
      const SharedPiece piece = piece_at(mapped / kPageBytes);
      const Bytes bytes = piece.pages * kPageBytes;
      check(bytes != 0 && bytes <= range.bytes - mapped ? driver.import_handle(device, piece.descriptor, &handle)
                                                        : Status::failed);
      const Status status = driver.map(device, range.address + mapped, bytes, handle);
      driver.destroy(device, handle);  // the mapping keeps the memory
      check(status);
      mapped += bytes;
    }
    check(driver.allow_access(device, range.address, range.bytes));
  } catch (...) {
    // Nothing was used, but a capture forbids to unmap: then the addresses stay, with the little that was mapped.
    if (const auto token = shared_.gate.no_capture()) drop(*token, range, mapped);
    throw;
  }
  const std::lock_guard guard(mutex_);
  ranges_.push_back(range);
  return range.address;
}

void OpenMemory::close(Address address) {
  {
    const std::lock_guard guard(mutex_);
    for (Range& range : ranges_)
      if (range.address == address) range.closing = true;
  }
  close_what_is_closing();
}

// The token is held until the mappings are gone, so that no capture begins in between.
void OpenMemory::close_what_is_closing() {
  std::vector<Range> closing;
  const auto any = [this] {
    const std::lock_guard guard(mutex_);
    return std::any_of(ranges_.begin(), ranges_.end(), [](const Range& range) { return range.closing; });
  };
  if (!any()) return;
  const auto token = shared_.gate.no_capture(shared_.device);
  if (!token) return;
  {
    const std::lock_guard guard(mutex_);
    const auto first =
        std::partition(ranges_.begin(), ranges_.end(), [](const Range& range) { return !range.closing; });
    closing.assign(first, ranges_.end());
    ranges_.erase(first, ranges_.end());
  }
  if (closing.empty()) return;
  const bool done = shared_.driver.synchronize_device(*token, shared_.device) == Status::ok;
  std::erase_if(closing, [&](const Range& range) { return done && drop(*token, range, range.bytes); });
  const std::lock_guard guard(mutex_);  // what the driver refuses goes another time
  ranges_.insert(ranges_.end(), closing.begin(), closing.end());
}

bool OpenMemory::drop(const NoCapture&, const Range& range, Bytes mapped) {
  Driver& driver = shared_.driver;
  if (mapped != 0 && driver.unmap(shared_.device, range.address, mapped) != Status::ok) return false;
  return range.address == 0 || driver.release(shared_.device, range.address, range.bytes) == Status::ok;
}

}  // namespace poolalloc
