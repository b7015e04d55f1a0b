// See model_device.h.
#include "driver/model_device.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace poolalloc {

Address AddressRanges::take(Bytes bytes, Bytes alignment) {
  for (auto hole = free_.begin(); hole != free_.end(); ++hole) {
    auto [start, size] = *hole;
    Address address = round_up(start, alignment);
    if (address - start > size || size - (address - start) < bytes) continue;
    free_.erase(hole);
    if (address > start) free_[start] = address - start;
    if (address + bytes < start + size) free_[address + bytes] = start + size - (address + bytes);
    return address;
  }
  return 0;
}

void AddressRanges::give_back(Address address, Bytes bytes) {
  auto next = free_.lower_bound(address);
  if (next != free_.end() && address + bytes == next->first) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    auto previous = std::prev(next);
    if (previous->first + previous->second == address) {
      previous->second += bytes;
      return;
    }
  }
  free_.emplace_hint(next, address, bytes);
}

std::size_t ModelDriver::Device::find_range(Address address) {
  if (last_range < ranges.size() && address - range_starts[last_range] < ranges[last_range].bytes) return last_range;
  auto after = std::upper_bound(range_starts.begin(), range_starts.end(), address);
  if (after == range_starts.begin()) return ranges.size();
  auto place = static_cast<std::size_t>(after - range_starts.begin()) - 1;
  if (address - range_starts[place] >= ranges[place].bytes) return ranges.size();
  return last_range = place;
}

void ModelDriver::Device::insert_range(Address start, Range range) {
  auto place = std::upper_bound(range_starts.begin(), range_starts.end(), start) - range_starts.begin();
  range_starts.insert(range_starts.begin() + place, start);
  ranges.insert(ranges.begin() + place, std::move(range));
}

void ModelDriver::Device::erase_range(std::size_t place) {
  range_starts.erase(range_starts.begin() + static_cast<std::ptrdiff_t>(place));
  ranges.erase(ranges.begin() + static_cast<std::ptrdiff_t>(place));
}

bool ModelDriver::Device::find_span(Address address, Bytes bytes, Bytes granularity, Span* span) {
  std::size_t place = find_range(address);
  if (place == ranges.size() || ranges[place].segment != 0) return false;
  Bytes offset = address - range_starts[place];
  if (bytes == 0 || offset % granularity != 0 || bytes % granularity != 0 || bytes > ranges[place].bytes - offset)
    return false;
  *span = {&ranges[place], offset / granularity, (offset + bytes) / granularity};
  return true;
}

bool ModelDriver::Device::whole_mappings(const Span& span) {
  std::size_t page = span.begin;
  while (page < span.end) {
    const Mapping* mapping = mapping_at(*span.range, page);
    if (mapping == nullptr || mapping->first_page != page) return false;
    page += mapping->pages;
  }
  return page == span.end;
}

std::uint32_t ModelDriver::Device::add_mapping(Mapping mapping) {
  if (free_mappings.empty()) {
    mappings.push_back(mapping);
    return static_cast<std::uint32_t>(mappings.size() - 1);
  }
  std::uint32_t number = free_mappings.back();
  free_mappings.pop_back();
  mappings[number] = mapping;
  return number;
}

bool ModelDriver::Device::physical(Address address, Bytes granularity, PhysicalHandle* handle, Bytes* offset) {
  std::size_t place = find_range(address);
  if (place == ranges.size()) return false;
  Bytes inside = address - range_starts[place];
  if (ranges[place].segment != 0) {
    *handle = ranges[place].segment;
    *offset = inside;
    return true;
  }
  const Mapping* mapping = mapping_at(ranges[place], inside / granularity);
  if (mapping == nullptr || !mapping->accessible) return false;
  *handle = mapping->handle;
  *offset = inside - mapping->first_page * granularity;
  return true;
}

ModelDriver::Device::Mapping* ModelDriver::Device::mapping_at(const Range& range, std::uint64_t page) {
  if (page >= range.pages.size() || range.pages[page] == 0) return nullptr;
  return &mappings[range.pages[page] - 1];
}

void ModelDriver::Device::drop_if_unused(PhysicalHandle handle, const Physical& physical) {
  if (physical.handles != 0 || physical.mappings != 0) return;
  used -= physical.bytes;
  contents.forget(handle);
  handles.remove(handle);
}

ModelDriver::Device::Stream& ModelDriver::Device::stream(StreamId id) {
  for (Stream& stream : streams)
    if (stream.id == id) return stream;
  streams.push_back({id, event_lag});
  return streams.back();
}

bool ModelDriver::Device::capture_active(std::uint64_t capture) const {
  return std::any_of(streams.begin(), streams.end(), [&](const Stream& stream) { return stream.capture == capture; });
}

}  // namespace poolalloc
