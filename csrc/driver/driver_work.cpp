// See driver_work.h.
#include "driver/driver_work.h"

#include <algorithm>
#include <bit>
#include <new>

namespace poolalloc {
namespace {

constexpr std::memory_order relaxed = std::memory_order_relaxed;

std::uint64_t pages_of(Bytes bytes) { return (bytes + kPageBytes - 1) / kPageBytes; }

}  // namespace

// --- where mappings begin -------------------------------------------------------------------------------------------

template <typename See>
void MappingStarts::each(Address address, Bytes bytes, See see) const {
  const std::size_t end = static_cast<std::size_t>((address + bytes + kPageBytes - 1) / kPageBytes);
  for (std::size_t page = static_cast<std::size_t>(address / kPageBytes); page < end;) {
    const std::size_t first = page % kWordPages, count = std::min(kWordPages - first, end - page);
    const std::uint64_t mask = (count == kWordPages ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << first;
    see(std::atomic_ref<std::uint64_t>(words_[page / kWordPages]), mask);
    page += count;
  }
}

void MappingStarts::add(Address address) {
  if (address < kEnd) each(address, 1, [](auto word, std::uint64_t mask) { word.fetch_or(mask, relaxed); });
}

void MappingStarts::remove(Address address, Bytes bytes) {
  if (address + bytes <= kEnd)
    each(address, bytes, [](auto word, std::uint64_t mask) { word.fetch_and(~mask, relaxed); });
}

std::uint64_t MappingStarts::count(Address address, Bytes bytes) const {
  if (address + bytes > kEnd) return pages_of(bytes);
  std::uint64_t found = 0;
  each(address, bytes, [&](auto word, std::uint64_t mask) {
    found += static_cast<std::uint64_t>(std::popcount(word.load(relaxed) & mask));
  });
  return found;
}

// --- sizes ----------------------------------------------------------------------------------------------------------

void SizesById::put(std::uint64_t id, Bytes bytes) {
  const std::lock_guard guard(mutex_);
  try {
    sizes_[id] = bytes;
  } catch (const std::bad_alloc&) {  // a driver throws nothing; the size is then unknown
  }
}

Bytes SizesById::take(std::uint64_t id) {
  const std::lock_guard guard(mutex_);
  const auto found = sizes_.find(id);
  if (found == sizes_.end()) return kPageBytes;
  const Bytes bytes = found->second;
  sizes_.erase(found);
  return bytes;
}

// --- the work -------------------------------------------------------------------------------------------------------

void DriverWork::add(DriverCall kind, std::uint64_t handles, std::uint64_t pages) {
  Amount& amount = amounts_[static_cast<std::size_t>(kind)];
  amount.handles.fetch_add(handles, relaxed);
  amount.pages.fetch_add(pages, relaxed);
}

void DriverWork::created(PhysicalHandle handle, Bytes bytes) {
  handles_.put(handle, bytes);
  add(DriverCall::create, 1, pages_of(bytes));
}

void DriverWork::ended(const Ending& ending, bool done) {
  if (done)
    add(ending.kind, 1, pages_of(ending.bytes));
  else
    (ending.kind == DriverCall::destroy ? handles_ : segments_).put(ending.id, ending.bytes);
}

void DriverWork::mapped(Address address, Bytes bytes) {
  starts_.add(address);
  add(DriverCall::map, 1, pages_of(bytes));
}

void DriverWork::granted(Address address, Bytes bytes, int devices) {
  const auto times = static_cast<std::uint64_t>(devices);
  add(DriverCall::allow_access, times * starts_.count(address, bytes), times * pages_of(bytes));
}

void DriverWork::unmapped(Address address, Bytes bytes) {
  add(DriverCall::unmap, starts_.count(address, bytes), pages_of(bytes));
  starts_.remove(address, bytes);
}

void DriverWork::segment_allocated(Address address, Bytes bytes) {
  segments_.put(address, bytes);
  add(DriverCall::allocate_segment, 1, pages_of(bytes));
}

std::map<std::string, std::uint64_t> DriverWork::counts() const {
  std::map<std::string, std::uint64_t> result;
  for (std::size_t kind = 0; kind < kDriverCallKinds; ++kind) {
    const std::uint64_t handles = amounts_[kind].handles.load(relaxed), pages = amounts_[kind].pages.load(relaxed);
    if (handles != 0) result[kDriverCallNames[kind]] = handles;
    if (pages != 0) result[std::string(kDriverCallNames[kind]) + "_pages"] = pages;
  }
  return result;
}

}  // namespace poolalloc
