#include "core/device/regions.h"

#include <algorithm>

#include "core/base/errors.h"

namespace poolalloc {

namespace {

thread_local std::vector<RegionId> entered;
RegionHooks hooks;

}  // namespace

RegionId Regions::id_of(const std::string& tag) {
  if (tag.empty()) throw UsageError("a region needs a tag that is not empty");
  std::lock_guard guard(mutex_);
  const auto found = std::find(tags_.begin(), tags_.end(), tag);
  if (found != tags_.end()) return static_cast<RegionId>(found - tags_.begin()) + 1;
  tags_.push_back(tag);
  return static_cast<RegionId>(tags_.size());
}

RegionId Regions::find(const std::string& tag) const {
  std::lock_guard guard(mutex_);
  const auto found = std::find(tags_.begin(), tags_.end(), tag);
  if (found != tags_.end()) return static_cast<RegionId>(found - tags_.begin()) + 1;
  std::string known;
  for (const std::string& each : tags_) known += (known.empty() ? "\"" : ", \"") + each + "\"";
  throw UsageError("this process has no region \"" + tag + "\"; " +
                   (known.empty() ? "it has none yet" : "its regions are " + known));
}

std::vector<RegionId> Regions::find(const std::vector<std::string>& tags) const {
  std::vector<RegionId> found;
  found.reserve(tags.size());
  for (const std::string& tag : tags) found.push_back(find(tag));
  return found;
}

std::string Regions::tag(RegionId region) const {
  std::lock_guard guard(mutex_);
  return region >= 1 && region <= tags_.size() ? tags_[region - 1] : std::string();
}

std::vector<std::string> Regions::tags() const {
  std::lock_guard guard(mutex_);
  return tags_;
}

RegionId Regions::here() {
  if (!entered.empty()) return entered.back();
  return hooks.here != nullptr ? hooks.here() : 0;
}

void Regions::enter(RegionId region) {
  entered.push_back(region);
  if (hooks.entered != nullptr) hooks.entered(region);
}

void Regions::leave() {
  if (hooks.left != nullptr) hooks.left();
  entered.pop_back();
}

void Regions::set_hooks(const RegionHooks& wanted) { hooks = wanted; }

}  // namespace poolalloc
