#include "core/plans/plan.h"

#include <string>

#include "core/base/errors.h"

namespace poolalloc {

namespace {

void check(const StreamPlan& part) {
  const auto refuse = [&](const std::string& problem) {
    throw ConfigError("the plan of device " + std::to_string(part.device) + ", stream " + std::to_string(part.stream) +
                      ", makes no sense: " + problem);
  };
  constexpr Bytes kMost = Bytes{1} << 48;
  if (part.height > kMost || part.requests.size() >= ~std::uint32_t{0}) refuse("it is too large");
  if (part.first >= part.requests.size() || part.period == 0 || (part.requests.size() - part.first) % part.period != 0)
    refuse("its cycle is not whole periods");
  for (const PlannedRequest& request : part.requests) {
    if (request.size == 0 || request.size > kMost || request.size % kGranularity != 0)
      refuse("a request has " + std::to_string(request.size) + " bytes");
    if (request.offset == PlannedRequest::kNowhere) continue;
    if (request.offset % kGranularity != 0 || request.offset > part.height ||
        request.size > part.height - request.offset)
      refuse("a block of " + std::to_string(request.size) + " bytes lies at " + std::to_string(request.offset));
  }
  for (std::size_t i = part.first + part.period; i < part.requests.size(); ++i)
    if (part.requests[i].size != part.requests[i - part.period].size) refuse("its periods differ");
}

}  // namespace

void check_plan(const Plan& plan) {
  for (const StreamPlan& part : plan.streams) check(part);
}

}  // namespace poolalloc
