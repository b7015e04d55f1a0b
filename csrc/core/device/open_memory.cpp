#include "core/device/open_memory.h"

#include <algorithm>

#include "core/base/errors.h"
#include "core/heap/device_shared.h"

namespace poolalloc {

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
