// Copies and fills; see copy.h.
#include "simgpu/copy.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "simgpu/cuda_abi.h"
#include "simgpu/memory.h"
#include "simgpu/operations.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

std::uint64_t number(const void* pointer) { return reinterpret_cast<std::uint64_t>(pointer); }
bool on_device(const void* pointer) { return sim().addresses.contains(number(pointer)); }

// Calls f(region, extent, offset, bytes) for each piece of a device range, in order; stops where nothing accessible is
// mapped and returns how much it walked.
template <class F>
std::uint64_t walk_regions(std::uint64_t address, std::uint64_t size, F&& f) {
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
    f(*place.region, *place.mapping->extent, place.mapping->offset + (address + done - place.start), bytes);
    done += bytes;
  }
  return done;
}

template <class F>
std::uint64_t walk(std::uint64_t address, std::uint64_t size, F&& f) {
  return walk_regions(address, size, [&](const Region&, Extent& extent, std::uint64_t offset, std::uint64_t bytes) {
    f(extent, offset, bytes);
  });
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

void zero_host(char* to, std::uint64_t size) {
  if (size == 0) return;
  const HostBlock* block = sim().host_memory.covering(number(to));
  if (block && block->kind != HostKind::kRegistered) {
    zero_host_pages(to, size);
  } else {
    std::memset(to, 0, size);
  }
}

void zero_device(std::uint64_t to, std::uint64_t size) {
  walk(to, size, [](Extent& extent, std::uint64_t offset, std::uint64_t bytes) { zero_extent(extent, offset, bytes); });
}

void read_device(char* to, std::uint64_t from, std::uint64_t size) {
  walk(from, size, [&](Extent& extent, std::uint64_t offset, std::uint64_t bytes) {
    read_extent(extent, offset, to, bytes);
    to += bytes;
  });
}

// What a copy does not move: unknown, and zero where other processes see it.
void skip_device(std::uint64_t to, std::uint64_t size) {
  walk(to, size, [](Extent& extent, std::uint64_t offset, std::uint64_t bytes) {
    if (extent.shared) {
      zero_extent(extent, offset, bytes);
    } else {
      forget_extent(extent, offset, bytes);
    }
  });
}

// Between devices: what is known stays known, and what is not becomes so.
void copy_device(std::uint64_t to, std::uint64_t from, std::uint64_t size) {
  std::vector<std::pair<std::uint64_t, std::string>> known;  // bytes by their distance from the start
  std::uint64_t done = 0;
  walk(from, size, [&](Extent& extent, std::uint64_t offset, std::uint64_t bytes) {
    for_each_known(extent, offset, bytes, [&](std::uint64_t start, std::uint64_t end) {
      std::string part(end - start, '\0');
      read_extent(extent, start, part.data(), part.size());
      known.emplace_back(done + (start - offset), std::move(part));
    });
    done += bytes;
  });
  skip_device(to, size);
  for (const auto& [distance, part] : known) write_device(to + distance, part.data(), part.size());
}

// Moves the first bytes of a copy, at most `budget` of them; the rest becomes unknown, and zero on the host.
void copy_within(void* to, const void* from, std::uint64_t size, std::uint64_t& budget) {
  const bool to_device = on_device(to);
  const bool from_device = on_device(from);
  if (!to_device && !from_device) {
    std::memmove(to, from, size);
    return;
  }
  const std::uint64_t moved = std::min(size, budget);
  budget -= moved;
  char* const rest = static_cast<char*>(to) + moved;
  if (to_device) {
    if (from_device) {
      copy_device(number(to), number(from), moved);
    } else {
      write_device(number(to), static_cast<const char*>(from), moved);
    }
    skip_device(number(rest), size - moved);
  } else {
    read_device(static_cast<char*>(to), number(from), moved);
    zero_host(rest, size - moved);
  }
}

// What an operation reads back from its own kernels is not known, unless somebody carried the operation out.
bool answer_read(void* to, std::uint64_t size) {
  const std::int64_t* answer = nullptr;
  if (!reads_own_results(&answer)) return false;
  zero_host(static_cast<char*>(to), size);
  if (answer && size <= sizeof *answer) std::memcpy(to, answer, size);
  return true;
}

}  // namespace

void write_device(std::uint64_t to, const char* from, std::uint64_t size) {
  walk(to, size, [&](Extent& extent, std::uint64_t offset, std::uint64_t bytes) {
    write_extent(extent, offset, from, bytes);
    from += bytes;
  });
}

void walk_device(std::uint64_t address, std::uint64_t size,
                 const std::function<void(const Region&, Extent&, std::uint64_t offset, std::uint64_t bytes)>& f) {
  walk_regions(address, size, f);
}

void forget_device(std::uint64_t address, std::uint64_t size) {
  walk(address, size,
       [](Extent& extent, std::uint64_t offset, std::uint64_t bytes) { forget_extent(extent, offset, bytes); });
}

bool is_known_device(std::uint64_t address, std::uint64_t size) {
  bool known = true;
  const std::uint64_t walked = walk(address, size, [&](Extent& extent, std::uint64_t offset, std::uint64_t bytes) {
    known = known && is_known(extent, offset, bytes);
  });
  return known && walked == size;
}

bool read_known_device(std::uint64_t address, std::uint64_t size, char* to) {
  if (!is_known_device(address, size)) return false;
  read_device(to, address, size);
  return true;
}

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
  if (on_device(from) && !on_device(to) && answer_read(to, size)) return;
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
  if (used == 0) {
    if (on_device(to)) {
      zero_device(number(to), size);
    } else {
      zero_host(static_cast<char*>(to), size);
    }
    return;
  }
  const std::uint64_t moved = on_device(to) ? std::min<std::uint64_t>(size, sim().config.copy_bytes) : size;
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
  if (on_device(to)) skip_device(number(to) + moved, size - moved);
}

}  // namespace poolalloc::simgpu
