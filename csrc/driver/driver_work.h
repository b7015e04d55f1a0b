// What was asked of a driver in the units that it charges for: handles, and the pages of 2 MiB in them.
//
// Drivers charge for each handle, and a little for each further page in it, whatever number of handles one call covers:
// an access grant or an unmapping over forty handles costs forty times one. So time is
// sum over kinds of price * (handles + slope * (pages - handles)), and calls alone say little
// (poolalloc/_internal/price_lists.py). Only work that was done counts. The simulated GPU counts the same for every
// allocator (csrc/simgpu/driver_work.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#include "core/base/lazy_array.h"
#include "driver/driver.h"

namespace poolalloc {

// Which addresses a mapping begins at: how many handles lie in a range that covers whole mappings. One bit for each
// page of the address space; any thread, with no lock.
class MappingStarts {
 public:
  void add(Address address);
  void remove(Address address, Bytes bytes);
  std::uint64_t count(Address address, Bytes bytes) const;

 private:
  static constexpr Address kEnd = Address{1} << 48;  // beyond, every page counts as a handle; no driver goes there
  static constexpr std::size_t kWordPages = 64;
  // Calls see(word, mask) for each word of bits of the range.
  template <typename See>
  void each(Address address, Bytes bytes, See see) const;

  mutable LazyArray<std::uint64_t> words_{kEnd / kPageBytes / kWordPages};
};

// Sizes by handle or by address, for calls that name what they end without its size.
class SizesById {
 public:
  void put(std::uint64_t id, Bytes bytes);
  // Removes it; a page if it is not known (a handle imported from another process).
  Bytes take(std::uint64_t id);

 private:
  std::mutex mutex_;
  std::unordered_map<std::uint64_t, Bytes> sizes_;
};

class DriverWork {
 public:
  // What is about to end: its size is looked up before the call, since the driver may give its name away in the call.
  struct Ending {
    DriverCall kind;
    std::uint64_t id;
    Bytes bytes;
  };

  // Each is told once the call has succeeded.
  void created(PhysicalHandle handle, Bytes bytes);
  void mapped(Address address, Bytes bytes);
  void granted(Address address, Bytes bytes, int devices);  // so many of them: itself and peers
  void unmapped(Address address, Bytes bytes);
  void segment_allocated(Address address, Bytes bytes);
  void addresses_reserved() { add(DriverCall::reserve, 1, 0); }
  void addresses_released() { add(DriverCall::release, 1, 0); }
  // Around the calls that end a handle or a segment.
  Ending destroying(PhysicalHandle handle) { return {DriverCall::destroy, handle, handles_.take(handle)}; }
  Ending freeing_segment(Address address) { return {DriverCall::free_segment, address, segments_.take(address)}; }
  void ended(const Ending& ending, bool done);

  // By the names of driver_call_name: handles of each kind as "map", their pages as "map_pages"; kinds never done are
  // missing. Exact once the callers have stopped.
  std::map<std::string, std::uint64_t> counts() const;

 private:
  struct Amount {
    std::atomic<std::uint64_t> handles{0}, pages{0};
  };
  void add(DriverCall kind, std::uint64_t handles, std::uint64_t pages);

  Amount amounts_[kDriverCallKinds];
  MappingStarts starts_;
  SizesById handles_, segments_;
};

}  // namespace poolalloc
