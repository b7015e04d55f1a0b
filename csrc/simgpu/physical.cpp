// Accounting and contents of physical memory; see physical.h.
#include "simgpu/physical.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "simgpu/pool.h"
#include "simgpu/report.h"
#include "simgpu/shared_card.h"
#include "simgpu/shared_contents.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

const std::uint64_t kHostPage = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));

// What all contents together may make resident on the host before further ones are dropped: an eighth of its memory.
std::uint64_t resident_limit() {
  static const std::uint64_t limit = static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * kHostPage / 8;
  return limit;
}

bool make_contents(Extent& extent) {
  if (extent.contents) return true;
  void* memory = mmap(nullptr, extent.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  extent.contents = static_cast<char*>(memory);
  return true;
}

// Makes the whole extent unknown; it then costs nothing.
void forget_contents(Extent& extent) {
  extent.known.clear();
  if (extent.touched == 0) return;
  madvise(extent.contents, extent.size, MADV_DONTNEED);
  sim().resident_bytes -= extent.touched;
  extent.touched = 0;
}

// Makes whole pages read as zeros by an advice that drops them; clears the edges by writing.
void zero_pages(char* from, std::uint64_t size, int advice) {
  const std::uint64_t start = reinterpret_cast<std::uint64_t>(from);
  const std::uint64_t first = round_up(start, kHostPage);
  const std::uint64_t last = (start + size) / kHostPage * kHostPage;
  if (first >= last) {
    std::memset(from, 0, size);
    return;
  }
  std::memset(from, 0, first - start);
  madvise(reinterpret_cast<void*>(first), last - first, advice);
  std::memset(reinterpret_cast<void*>(last), 0, start + size - last);
}

bool take_bytes(Device& device, std::uint64_t size) {
  SharedCard* card = sim().card.get();
  if (card ? !card->take(device.physical_index, size) : device.used + size > device.capacity) return false;
  device.used += size;
  device.peak = std::max(device.peak, device.used);
  return true;
}

void give_bytes(Device& device, std::uint64_t size) {
  if (SharedCard* card = sim().card.get()) card->give(device.physical_index, size);
  device.used -= size;
}

}  // namespace

std::uint64_t used_bytes(const Device& device) {
  SharedCard* card = sim().card.get();
  return card ? card->used(device.physical_index) : device.used;
}

std::uint64_t free_bytes(const Device& device) { return device.capacity - used_bytes(device); }

Extent* create_extent(Device& device, std::uint64_t size, bool counted) {
  if (counted) {
    if (size > device.capacity) return nullptr;
    if (!take_bytes(device, size)) {
      trim_pools_of(device);
      if (!take_bytes(device, size)) return nullptr;
    }
  }
  return new Extent{.device = &device, .size = size, .counted = counted, .id = ++sim().last_extent_id};
}

void retain_extent(Extent& extent) { ++extent.references; }

void release_extent(Extent& extent) {
  if (--extent.references > 0) return;
  if (extent.counted) give_bytes(*extent.device, extent.size);
  if (extent.shared) {
    unshare_contents(extent);
  } else if (extent.contents) {
    munmap(extent.contents, extent.size);
  }
  sim().resident_bytes -= extent.touched;
  delete &extent;
}

bool has_contents(const Extent& extent) {
  if (extent.shared) return true;
  return !extent.known.empty() && (sim().config.keep_contents || extent.forgettings == extent.device->forgettings);
}

bool is_known(const Extent& extent, std::uint64_t offset, std::uint64_t size) {
  return extent.shared || (has_contents(extent) && extent.known.covers(offset, offset + size));
}

void write_extent(Extent& extent, std::uint64_t offset, const void* from, std::uint64_t size) {
  if (size == 0) return;
  if (!has_contents(extent)) forget_contents(extent);
  extent.forgettings = extent.device->forgettings;
  const std::uint64_t grown = std::min(extent.size, extent.touched + round_up(size, kHostPage));
  const bool small = size <= kHostPage;
  if (!small && sim().resident_bytes + (grown - extent.touched) > resident_limit()) {
    forget_extent(extent, offset, size);
    if (!sim().said_contents_dropped)
      say("contents of further copies are dropped: the host's memory would not hold them");
    sim().said_contents_dropped = true;
    return;
  }
  if (!make_contents(extent)) return;
  sim().resident_bytes += grown - extent.touched;
  extent.touched = grown;
  std::memcpy(extent.contents + offset, from, size);
  extent.known.add(offset, offset + size);
}

void read_extent(const Extent& extent, std::uint64_t offset, void* to, std::uint64_t size) {
  std::memset(to, 0, size);
  if (!extent.contents) return;  // whatever is known is zero
  for_each_known(extent, offset, size, [&](std::uint64_t start, std::uint64_t end) {
    std::memcpy(static_cast<char*>(to) + (start - offset), extent.contents + start, end - start);
  });
}

void zero_extent(Extent& extent, std::uint64_t offset, std::uint64_t size) {
  if (extent.shared) {
    zero_pages(extent.contents + offset, size, MADV_REMOVE);
    return;
  }
  if (!has_contents(extent) || (offset == 0 && size == extent.size)) forget_contents(extent);
  extent.forgettings = extent.device->forgettings;
  if (extent.contents) zero_host_pages(extent.contents + offset, size);
  extent.known.add(offset, offset + size);
}

void forget_extent(Extent& extent, std::uint64_t offset, std::uint64_t size) {
  if (extent.shared || extent.known.empty()) return;
  extent.known.remove(offset, offset + size);
  if (extent.known.empty()) forget_contents(extent);
}

void zero_host_pages(char* from, std::uint64_t size) { zero_pages(from, size, MADV_DONTNEED); }

}  // namespace poolalloc::simgpu
