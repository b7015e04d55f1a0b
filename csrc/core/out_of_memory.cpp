#include "core/out_of_memory.h"

#include <algorithm>
#include <sstream>
#include <utility>
#include <vector>

#include "core/options.h"

namespace poolalloc {

std::string describe(const OutOfMemoryFigures& figures) {
  const DeviceStats& now = figures.stats;
  const auto shown = [](const Counter& counter) { return format_bytes(static_cast<Bytes>(counter.current)); };
  const Bytes free_bytes = figures.free_bytes, total_bytes = figures.total_bytes;
  const Bytes reserved = static_cast<Bytes>(now.reserved.current);
  const Bytes room = std::min(free_bytes, now.limit_bytes > reserved ? now.limit_bytes - reserved : 0);
  Bytes removable = now.unmapped;
  for (const HeapStats& heap : now.heaps) removable += heap.removable;

  std::ostringstream text;
  text << "poolalloc: out of memory on device " << now.device << " (" << figures.device_name << "): asked for "
       << format_bytes(figures.asked) << ". The device has " << format_bytes(free_bytes) << " free of "
       << format_bytes(total_bytes) << "; poolalloc may hold " << format_bytes(now.limit_bytes) << " and holds "
       << format_bytes(reserved) << ": " << shown(now.live) << " live (" << shown(now.requested) << " requested), "
       << shown(now.pending) << " pending, " << shown(now.idle)
       << " idle. The largest block that would have fitted: about "
       << format_bytes((room + removable) / kPageBytes * kPageBytes) << ".";
  if (figures.addresses_missing)
    text << " No addresses are left on this stream: raise the option address_space (now " << figures.address_space
         << "), or use fewer streams and private pools (now " << now.heaps.size() << "), which share what there are.";

  std::vector<std::pair<Bytes, std::string>> holders;
  for (const HeapStats& heap : now.heaps) {
    const std::string where = " on stream " + std::to_string(heap.stream);
    for (const BinStats& bin : heap.bins)
      holders.emplace_back(bin.rounded, "bin " + format_bytes(bin.block_bytes) + where);
    holders.emplace_back(heap.arena_rounded, "arena" + where);
  }
  std::sort(holders.rbegin(), holders.rend());
  text << " Held by:";
  for (std::size_t i = 0; i < holders.size() && i < 4 && holders[i].first != 0; ++i)
    text << (i == 0 ? " " : ", ") << holders[i].second << " " << format_bytes(holders[i].first);
  text << ". Try a smaller batch";
  if (now.limit_bytes < now.total_bytes) text << ", a higher memory_fraction or memory_limit";
  if (free_bytes + reserved < total_bytes / 10 * 9)
    text << ", or ending other processes, which hold " << format_bytes(total_bytes - free_bytes - reserved);
  text << ".";
  return text.str();
}

}  // namespace poolalloc
