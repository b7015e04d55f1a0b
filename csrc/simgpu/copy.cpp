// Copies and fills; see copy.h.
#include "simgpu/copy.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "simgpu/cuda_abi.h"
#include "simgpu/memory.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

std::uint64_t number(const void* pointer) { return reinterpret_cast<std::uint64_t>(pointer); }
bool on_device(const void* pointer) { return sim().addresses.contains(number(pointer)); }

// Calls f(extent, offset, bytes) for each piece of a device range, in order; stops where nothing accessible is mapped
// and returns how much it walked.
template <class F>
std::uint64_t walk(std::uint64_t address, std::uint64_t size, F&& f) {
  std::uint64_t done = 0;
  while (done < size) {
    const AddressSpace::Place place = sim().addresses.place_of(address + done);
    if (!place.mapping) break;
    std::uint64_t end = place.start + place.mapping->size;
    if (place.region->kind != RegionKind::kReservation) {
      end = std::min(end, place.region->base + place.region->requested);
    }
    if (place.region->pool) {
      const std::uint64_t block = place.region->pool->start_of(address + done);
      end = block == 0 ? 0 : block + place.region->pool->size_of(block);
    }
    if (end <= address + done) break;
    const std::uint64_t bytes = std::min(size - done, end - (address + done));
    f(*place.mapping->extent, place.mapping->offset + (address + done - place.start), bytes);
    done += bytes;
  }
  return done;
}

Error check_device_range(std::uint64_t address, std::uint64_t size, const char* caller) {
  const std::uint64_t walked = walk(address, size, [](Extent&, std::uint64_t, std::uint64_t) {});
  if (walked == size) return kSuccess;
  violation("bad_address", "%s: of %llu bytes at 0x%llx only %llu are mapped, accessible and allocated", caller,
            static_cast<unsigned long long>(size), static_cast<unsigned long long>(address),
            static_cast<unsigned long long>(walked));
  return kInvalidValue;
}

Error check_range(const void* pointer, std::uint64_t size, bool needs_device, const char* caller) {
  if (on_device(pointer)) return check_device_range(number(pointer), size, caller);
  if (!needs_device || sim().host_memory.covering(number(pointer))) return pointer ? kSuccess : kInvalidValue;
  violation("bad_address", "%s: %p is not memory that a device can reach", caller, pointer);
  return kInvalidValue;
}

void zero(void* to, std::uint64_t size) {
  if (size == 0) return;
  if (on_device(to)) {
    walk(number(to), size,
         [](Extent& extent, std::uint64_t offset, std::uint64_t bytes) { clear_extent(extent, offset, bytes); });
  } else if (const HostBlock* block = sim().host_memory.covering(number(to));
             block && block->kind != HostKind::kRegistered) {
    zero_host_pages(static_cast<char*>(to), size);
  } else {
    std::memset(to, 0, size);
  }
}

void write_device(std::uint64_t to, const char* from, std::uint64_t size) {
  walk(to, size, [&](Extent& extent, std::uint64_t offset, std::uint64_t bytes) {
    write_extent(extent, offset, from, bytes);
    from += bytes;
  });
}

void read_device(char* to, std::uint64_t from, std::uint64_t size) {
  walk(from, size, [&](Extent& extent, std::uint64_t offset, std::uint64_t bytes) {
    read_extent(extent, offset, to, bytes);
    to += bytes;
  });
}

bool range_has_contents(std::uint64_t address, std::uint64_t size) {
  bool found = false;
  walk(address, size, [&](Extent& extent, std::uint64_t, std::uint64_t) { found = found || has_contents(extent); });
  return found;
}

// Moves the first bytes of a copy, at most `budget` of them, and zeroes the rest.
void copy_within(void* to, const void* from, std::uint64_t size, std::uint64_t& budget) {
  const bool to_device = on_device(to);
  const bool from_device = on_device(from);
  if (!to_device && !from_device) {
    std::memmove(to, from, size);
    return;
  }
  const std::uint64_t moved = std::min(size, budget);
  budget -= moved;
  if (from_device && to_device) {
    if (moved > 0 && range_has_contents(number(from), moved)) {
      std::vector<char> buffer(moved);
      read_device(buffer.data(), number(from), moved);
      write_device(number(to), buffer.data(), moved);
    } else {
      zero(to, moved);
    }
  } else if (from_device) {
    read_device(static_cast<char*>(to), number(from), moved);
  } else {
    write_device(number(to), static_cast<const char*>(from), moved);
  }
  zero(static_cast<char*>(to) + moved, size - moved);
}

}  // namespace

Error check_copy(const void* to, const void* from, std::uint64_t size, int kind, const char* caller) {
  if (size == 0) return kSuccess;
  if (kind < abi::kHostToHost || kind > abi::kCopyDefault) return kInvalidMemcpyDirection;
  const bool default_kind = kind == abi::kCopyDefault;
  const bool to_device = kind == abi::kHostToDevice || kind == abi::kDeviceToDevice;
  const bool from_device = kind == abi::kDeviceToHost || kind == abi::kDeviceToDevice;
  if (!default_kind && ((!to_device && on_device(to)) || (!from_device && on_device(from)))) return kInvalidValue;
  if (const Error error = check_range(to, size, to_device && !default_kind, caller); error != kSuccess) return error;
  return check_range(from, size, from_device && !default_kind, caller);
}

Error check_target(const void* to, std::uint64_t size, const char* caller) {
  return size == 0 ? kSuccess : check_range(to, size, true, caller);
}

void copy_bytes(void* to, const void* from, std::uint64_t size) {
  std::uint64_t budget = sim().config.copy_bytes;
  copy_within(to, from, size, budget);
}

Error check_copy_rows(const void* to, const void* from, const Rows& rows, int kind, const char* caller) {
  if (rows.width == 0 || rows.height == 0) return kSuccess;
  if (rows.width > rows.to_pitch || rows.width > rows.from_pitch) return kInvalidValue;
  if (const Error error = check_copy(to, from, rows.width, kind, caller); error != kSuccess) return error;
  const auto end = [&](std::uint64_t pitch) { return pitch * (rows.height - 1) + rows.width; };
  if (on_device(to)) {
    if (const Error error = check_device_range(number(to), end(rows.to_pitch), caller); error != kSuccess) return error;
  }
  return on_device(from) ? check_device_range(number(from), end(rows.from_pitch), caller) : kSuccess;
}

void copy_rows(void* to, const void* from, const Rows& rows) {
  std::uint64_t budget = sim().config.copy_bytes;
  for (std::uint64_t row = 0; row < rows.height; ++row) {
    copy_within(static_cast<char*>(to) + row * rows.to_pitch, static_cast<const char*>(from) + row * rows.from_pitch,
                rows.width, budget);
  }
}

void fill_bytes(void* to, std::uint32_t value, unsigned width, std::uint64_t count) {
  const std::uint64_t size = count * width;
  // A fill of zeros costs nothing, however large it is.
  const std::uint32_t used = width == 4 ? value : value & ((1u << (8 * width)) - 1);
  const std::uint64_t moved =
      used == 0 ? 0 : (on_device(to) ? std::min<std::uint64_t>(size, sim().config.copy_bytes) : size);
  if (moved > 0) {
    std::vector<char> buffer(moved);
    for (std::uint64_t at = 0; at < moved; at += width) {
      std::memcpy(buffer.data() + at, &used, std::min<std::uint64_t>(width, moved - at));
    }
    if (on_device(to)) {
      write_device(number(to), buffer.data(), moved);
    } else {
      std::memcpy(to, buffer.data(), moved);
    }
  }
  zero(static_cast<char*>(to) + moved, size - moved);
}

}  // namespace poolalloc::simgpu
