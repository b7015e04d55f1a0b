#include "core/device/out_of_memory.h"

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <utility>
#include <vector>

#include "core/device/regions.h"
#include "core/options/options.h"

namespace poolalloc {

namespace {

// A size as torch writes it.
std::string in_torchs_form(Bytes bytes) {
  char text[64];
  const auto value = static_cast<double>(bytes);
  if (bytes <= Bytes{1} << 10)
    std::snprintf(text, sizeof text, "%llu bytes", static_cast<unsigned long long>(bytes));
  else if (bytes <= Bytes{1} << 20)
    std::snprintf(text, sizeof text, "%.2f KiB", value / 0x1p10);
  else if (bytes <= Bytes{1} << 30)
    std::snprintf(text, sizeof text, "%.2f MiB", value / 0x1p20);
  else
    std::snprintf(text, sizeof text, "%.2f GiB", value / 0x1p30);
  return text;
}

// Idle memory by who may use it.
struct Idle {
  Bytes removable = 0;   // serves the request, or can go back to the device
  Bytes in_pools = 0;    // other private pools in use keep it
  Bytes by_capture = 0;  // other heaps keep it until a capture has ended
};

Idle idle_of(const OutOfMemoryFigures& figures) {
  Idle idle;
  idle.removable = figures.stats.unmapped;
  for (const HeapStats& heap : figures.stats.heaps) {
    const bool own = heap.stream == figures.stream && heap.pool == figures.pool;
    if (own || (heap.idle_in_pools == 0 && !figures.capturing))
      idle.removable += heap.removable;
    else if (heap.idle_in_pools != 0)
      idle.in_pools += heap.idle_in_pools;
    else
      idle.by_capture += static_cast<Bytes>(heap.idle.current);
  }
  return idle;
}

std::string name_of(const HeapStats& heap) {
  std::string name = " on stream " + std::to_string(heap.stream);
  if (!heap.region.empty())
    name += " in region " + quoted(heap.region);
  else if (heap.pool != PoolId{})
    name += " in private pool " + std::to_string(heap.pool.first) + "," + std::to_string(heap.pool.second);
  return name;
}

}  // namespace

std::string torchs_sentences(Bytes asked, DeviceIndex device, Bytes free_bytes, Bytes total_bytes) {
  constexpr Bytes kExabyte = Bytes{1} << 60;
  if (asked >= kExabyte) return "CUDA out of memory. Tried to allocate more than 1EB memory.";
  return "CUDA out of memory. Tried to allocate " + in_torchs_form(asked) + ". GPU " + std::to_string(device) +
         " has a total capacity of " + in_torchs_form(total_bytes) + " of which " + in_torchs_form(free_bytes) +
         " is free.";
}

std::string describe(const OutOfMemoryFigures& figures) {
  const DeviceStats& now = figures.stats;
  // What is on the device: not what lives in regions that are asleep.
  Bytes live = 0, requested = 0, pending = 0;
  for (const HeapStats& heap : now.heaps) {
    if (heap.asleep != 0) continue;
    live += static_cast<Bytes>(heap.live.current);
    requested += static_cast<Bytes>(heap.requested.current);
    pending += static_cast<Bytes>(heap.pending.current);
  }
  const Bytes free_bytes = figures.free_bytes, total_bytes = figures.total_bytes;
  const Bytes reserved = static_cast<Bytes>(now.reserved.current);
  const Bytes room = std::min(free_bytes, now.limit_bytes > reserved ? now.limit_bytes - reserved : 0);
  const Idle idle = idle_of(figures);

  std::ostringstream text;
  text << torchs_sentences(figures.asked, now.device, free_bytes, total_bytes) << " poolalloc was asked for "
       << format_bytes(figures.asked) << (figures.waking.empty() ? "" : " to wake " + figures.waking) << " on device "
       << now.device << " (" << figures.device_name << "). It may hold " << format_bytes(now.limit_bytes)
       << " and holds " << format_bytes(reserved) << ": " << format_bytes(live) << " live (" << format_bytes(requested)
       << " requested), " << format_bytes(pending) << " pending, " << format_bytes(static_cast<Bytes>(now.idle.current))
       << " idle.";
  if (idle.in_pools != 0)
    text << " Of the idle memory, " << format_bytes(idle.in_pools)
         << " is in private pools that a CUDA graph may touch, and serves only them.";
  if (idle.by_capture != 0)
    text << " Of the idle memory, " << format_bytes(idle.by_capture)
         << " cannot be moved while a CUDA graph is captured.";
  if (now.asleep != 0)
    text << " Regions that are asleep have " << format_bytes(now.asleep) << " more, which they do not hold now.";
  text << " The largest block that would have fitted: about "
       << format_bytes((room + idle.removable) / kPageBytes * kPageBytes) << ".";
  if (figures.addresses_missing)
    text << " No addresses are left on this stream: raise the option address_space (now " << figures.address_space
         << "), or use fewer streams and private pools (now " << now.heaps.size() << "), which share what there are.";

  std::vector<std::pair<Bytes, std::string>> holders;
  for (const HeapStats& heap : now.heaps) {
    const std::string where = name_of(heap);
    for (const BinStats& bin : heap.bins)
      holders.emplace_back(bin.rounded, "bin " + format_bytes(bin.block_bytes) + where);
    holders.emplace_back(heap.arena_rounded, "arena" + where);
  }
  std::sort(holders.rbegin(), holders.rend());
  for (std::size_t i = 0; i < holders.size() && i < 4 && holders[i].first != 0; ++i)
    text << (i == 0 ? " Held by: " : ", ") << holders[i].second << " " << format_bytes(holders[i].first);
  if (!holders.empty() && holders.front().first != 0) text << ".";
  text << (figures.waking.empty() ? " Try a smaller batch" : " Try putting another region to sleep");
  if (idle.in_pools != 0) text << ", or deleting CUDA graphs and memory pools that are no longer needed";
  if (now.limit_bytes < now.total_bytes) text << ", a higher memory_fraction or memory_limit";
  if (free_bytes + reserved < total_bytes / 10 * 9)
    text << ", or ending other processes, which hold " << format_bytes(total_bytes - free_bytes - reserved);
  text << ".";
  return text.str();
}

}  // namespace poolalloc
