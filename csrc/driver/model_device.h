// The tables behind ModelDriver: one modelled device, and the addresses all devices share. Internal to csrc/driver.
// A Device does not lock itself: ModelDriver holds its mutex around every use.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "driver/model_driver.h"

namespace poolalloc {

// Items by an identifier that is never 0 and, for 2^24 reuses of a place, never valid again once removed.
template <typename T>
class SlotTable {
 public:
  explicit SlotTable(std::uint8_t tag) : tag_(static_cast<std::uint32_t>(tag) << 24) {}

  std::uint64_t add(T value) {
    if (free_.empty()) {
      free_.push_back(static_cast<std::uint32_t>(slots_.size()));
      slots_.push_back({});
    }
    std::uint32_t index = free_.back();
    free_.pop_back();
    Slot& slot = slots_[index];
    slot.value = value;
    slot.live = true;
    return static_cast<std::uint64_t>(tag_ | slot.generation) << 32 | (index + 1);
  }
  // Null if there is no such item now. The pointer holds until the next add.
  T* find(std::uint64_t id) {
    std::uint64_t index = (id & 0xffffffff) - 1;
    if (index >= slots_.size()) return nullptr;
    Slot& slot = slots_[index];
    return slot.live && (tag_ | slot.generation) == id >> 32 ? &slot.value : nullptr;
  }
  // `id` must be an item.
  void remove(std::uint64_t id) {
    std::uint32_t index = static_cast<std::uint32_t>(id & 0xffffffff) - 1;
    slots_[index].live = false;
    slots_[index].generation = (slots_[index].generation + 1) & 0xffffff;
    free_.push_back(index);
  }

 private:
  struct Slot {
    T value{};
    std::uint32_t generation = 0;
    bool live = false;
  };
  std::uint32_t tag_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
};

// Hands out address ranges in [kFirst, kEnd), reusing what came back before going on.
class AddressRanges {
 public:
  static constexpr Address kFirst = Address{1} << 40;
  static constexpr Address kEnd = Address{1} << 47;

  // 0 if no range of that size is left.
  Address take(Bytes bytes, Bytes alignment);
  void give_back(Address address, Bytes bytes);

 private:
  std::map<Address, Bytes> free_ = {{kFirst, kEnd - kFirst}};  // neighbours coalesced
};

struct ModelDriver::AddressSpace {
  Address take(Bytes bytes, Bytes alignment) {
    std::lock_guard guard(mutex);
    return ranges.take(bytes, alignment);
  }
  void give_back(Address address, Bytes bytes) {
    std::lock_guard guard(mutex);
    ranges.give_back(address, bytes);
  }
  std::mutex mutex;
  AddressRanges ranges;
};

// The pages of physical memory that copies have written to.
class CopiedPages {
 public:
  using Page = std::pair<PhysicalHandle, std::uint64_t>;  // and its number within the handle

  const std::vector<char>* find(const Page& page) const {
    const auto found = pages_.find(page);
    return found != pages_.end() ? &found->second : nullptr;
  }
  // Of zeros if nothing was copied there yet.
  std::vector<char>& make(const Page& page, Bytes bytes) {
    std::vector<char>& contents = pages_[page];
    contents.resize(bytes);
    return contents;
  }
  void forget(PhysicalHandle handle) {
    pages_.erase(pages_.lower_bound({handle, 0}), pages_.lower_bound({handle + 1, 0}));
  }

 private:
  std::map<Page, std::vector<char>> pages_;
};

struct ModelDriver::Device {
  struct Physical {
    Bytes bytes;
    std::uint32_t mappings;
    std::uint32_t handles;  // created or imported, and not destroyed
  };
  struct Mapping {
    PhysicalHandle handle;
    std::uint32_t first_page;  // within its range
    std::uint32_t pages;
    bool accessible;
    DeviceSet peers = 0;  // that have access besides
  };
  // Addresses reserved at once, or a segment: then `segment` is its memory and there are no mappings.
  struct Range {
    Bytes bytes;
    PhysicalHandle segment;
    std::vector<std::uint32_t> pages;  // number of the mapping + 1, 0 for none; as long as was ever mapped
  };
  struct Span {
    Range* range;
    std::size_t begin;  // pages [begin, end) of the range
    std::size_t end;
  };
  struct Event {
    std::uint64_t completion = 0;  // complete when `now` has reached it; 0: never recorded, which counts as complete
    std::uint64_t capture = 0;     // not 0: recorded in this capture
  };
  struct Stream {
    StreamId id;
    std::uint64_t lag;
    std::uint64_t busy_until = 0;
    std::uint64_t capture = 0;
    bool announced = false;  // the capture that began here
  };

  Device(DeviceIndex index, const ModelOptions& options)
      : handles(static_cast<std::uint8_t>(index)),
        events(static_cast<std::uint8_t>(index)),
        event_lag(options.event_lag) {}

  // The place of the range that contains `address`, or ranges.size().
  std::size_t find_range(Address address);
  void insert_range(Address start, Range range);
  void erase_range(std::size_t place);
  // False if the bytes are not whole pages inside one reserved range.
  bool find_span(Address address, Bytes bytes, Bytes granularity, Span* span);
  // Whether the span is covered by mappings that neither begin before it nor end after it.
  bool whole_mappings(const Span& span);
  Mapping* mapping_at(const Range& range, std::uint64_t page);
  std::uint32_t add_mapping(Mapping mapping);
  // Gives physical memory back to the device if nothing holds it any more.
  void drop_if_unused(PhysicalHandle handle, const Physical& physical);
  // False if nothing accessible is at `address`.
  bool physical(Address address, Bytes granularity, PhysicalHandle* handle, Bytes* offset);

  Stream& stream(StreamId id);
  bool capture_active(std::uint64_t capture) const;
  bool capturing() const { return captures_active.load(std::memory_order_relaxed) != 0; }
  void wait_until(std::uint64_t time) { now = time > now ? time : now; }

  std::mutex mutex;
  Bytes used = 0;  // sum of bytes of handles
  Bytes peak_used = 0;
  SlotTable<Physical> handles;
  CopiedPages contents;
  std::vector<Address> range_starts;  // sorted; ranges[i] starts at range_starts[i]
  std::vector<Range> ranges;
  std::size_t last_range = 0;
  std::vector<Mapping> mappings;
  std::vector<std::uint32_t> free_mappings;

  SlotTable<Event> events;
  std::vector<Stream> streams;  // few, so a search from the front is quickest
  std::uint64_t event_lag;
  std::uint64_t now = 1;
  std::uint64_t captures_begun = 0;
  std::atomic<int> captures_active{0}, captures_announced{0};
};

struct ModelDriver::Entry {
  Status status = Status::failed;
  Device* device = nullptr;  // if status is ok, with its mutex held by `lock`
  std::unique_lock<std::mutex> lock;

  bool stopped() const { return device == nullptr; }
  Device* operator->() const { return device; }
};

}  // namespace poolalloc
