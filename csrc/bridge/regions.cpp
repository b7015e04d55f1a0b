// Threads of autograd allocate in the region of the thread whose backward pass they run. torch carries what a thread
// has in its ThreadLocalDebugInfo over to them, so that is where the region is noted; of the kinds there are, this one
// has no other user in a CUDA build.
#include "core/device/regions.h"

#include <c10/util/ThreadLocalDebugInfo.h>

#include <memory>

#include "bridge/torch_allocator.h"

namespace poolalloc::bridge {
namespace {

const auto kKind = c10::DebugInfoKind::MOBILE_RUNTIME_INFO;

struct Here final : c10::DebugInfoBase {
  explicit Here(RegionId region, RegionId around) : region(region), around(around) {}
  RegionId region;
  const RegionId around;
};

Here* here() { return static_cast<Here*>(c10::ThreadLocalDebugInfo::get(kKind)); }

void entered(RegionId region) {
  const Here* outer = here();
  c10::ThreadLocalDebugInfo::_push(kKind, std::make_shared<Here>(region, outer != nullptr ? outer->region : 0));
}

// Something else, a profiler say, may have come on top and stay there.
void left() {
  if (c10::ThreadLocalDebugInfo::_peek(kKind) != nullptr)
    c10::ThreadLocalDebugInfo::_pop(kKind);
  else if (Here* own = here())
    own->region = own->around;
}

RegionId region_here() {
  const Here* own = here();
  return own != nullptr ? own->region : 0;
}

}  // namespace

void follow_regions() { Regions::set_hooks({&entered, &left, &region_here}); }

}  // namespace poolalloc::bridge
