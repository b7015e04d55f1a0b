// Uses of memory by work on streams; see uses.h.
#include "simgpu/uses.h"

#include <algorithm>

#include "simgpu/copy.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

// Of one extent. The oldest go first: what is used much is used in turn.
constexpr std::size_t kMostUses = 256;

bool is_complete(const Use& use) {
  return use.timeline->completed >= use.position || use.timeline->device->launches >= use.launch + sim().config.lag;
}

bool follows(const Stream& stream, const Use& use) {
  if (stream.timeline == use.timeline) return true;
  const auto known = stream.clock.find(use.timeline);
  return known != stream.clock.end() && known->second >= use.position;
}

void complain(const Stream& stream, const Use& use, std::uint64_t bytes, bool write, const char* by) {
  violation("use_too_early",
            "%s %s %llu bytes on stream %llu of device %d, which does not follow %s on stream %llu of device %d, which "
            "may still be %s them",
            by, write ? "writes" : "reads", static_cast<unsigned long long>(bytes),
            static_cast<unsigned long long>(stream.id), stream.device->index, use.by,
            static_cast<unsigned long long>(use.stream), use.timeline->device->index,
            use.write ? "writing" : "reading");
}

void note_part(Stream& stream, Extent& extent, Use fresh) {
  Uses& uses = extent.uses;
  std::erase_if(uses, is_complete);
  const Use* early = nullptr;
  for (const Use& use : uses) {
    const bool apart = use.end <= fresh.start || fresh.end <= use.start;
    if (!apart && (use.write || fresh.write) && !follows(stream, use)) early = &use;
  }
  if (early) {
    const std::uint64_t bytes = std::min(early->end, fresh.end) - std::max(early->start, fresh.start);
    complain(stream, *early, bytes, fresh.write, fresh.by);
  }
  // What the fresh use covers and follows is done before it is.
  std::erase_if(uses, [&](const Use& use) {
    return fresh.write && use.start >= fresh.start && use.end <= fresh.end && follows(stream, use);
  });
  const bool known = std::any_of(uses.begin(), uses.end(), [&](Use& use) {
    if (use.start != fresh.start || use.end != fresh.end || use.write != fresh.write || use.timeline != fresh.timeline)
      return false;
    use = fresh;
    return true;
  });
  if (known) return;
  if (uses.size() == kMostUses) uses.erase(uses.begin());
  uses.push_back(std::move(fresh));
}

}  // namespace

bool uses_are_kept() { return sim().config.lag > 0; }

void note_use(Stream& stream, std::uint64_t address, std::uint64_t size, bool write, const char* by) {
  if (!uses_are_kept() || stream.capture || size == 0 || !sim().addresses.contains(address)) return;
  walk_device(address, size, [&](const Region& region, Extent& extent, std::uint64_t offset, std::uint64_t bytes) {
    // A pool of CUDA's own orders those who take turns.
    if (region.kind == RegionKind::kPoolSegment) return;
    note_part(stream, extent,
              {offset, offset + bytes, stream.timeline, stream.timeline->enqueued, stream.device->launches, stream.id,
               write, by});
  });
}

}  // namespace poolalloc::simgpu
