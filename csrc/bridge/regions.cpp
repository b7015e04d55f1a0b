// Threads of autograd allocate in the region of the thread whose backward pass they run. torch copies a thread's
// ThreadLocalDebugInfo to them, so the region is noted there. It is a stack that profilers use too, so the note stays
// only while a backward pass runs. Its kind has no other user in a CUDA build.
#include "core/device/regions.h"

#include <c10/util/ThreadLocalDebugInfo.h>

#include <memory>

#include "bridge/torch_allocator.h"

namespace poolalloc::bridge {
namespace {

const auto kKind = c10::DebugInfoKind::MOBILE_RUNTIME_INFO;

struct Here final : c10::DebugInfoBase {
  explicit Here(RegionId region) : region(region) {}
  const RegionId region;
};

void carry(RegionId region) { c10::ThreadLocalDebugInfo::_push(kKind, std::make_shared<Here>(region)); }

// A hook of the pass may have started something that is on top now; then this stays under it, and counts for nobody but
// threads of autograd.
void stop() {
  try {
    c10::ThreadLocalDebugInfo::_pop(kKind);
  } catch (const c10::Error&) {
  }
}

RegionId here() {
  const auto* own = static_cast<const Here*>(c10::ThreadLocalDebugInfo::get(kKind));
  return own != nullptr ? own->region : 0;
}

}  // namespace

void follow_regions() { Regions::set_hooks({&carry, &stop, &here}); }

}  // namespace poolalloc::bridge
