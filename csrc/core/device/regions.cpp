#include "core/device/regions.h"

#include <algorithm>

#include "core/base/errors.h"

namespace poolalloc {

namespace {

thread_local std::vector<RegionId> entered;
RegionHooks hooks;

}  // namespace

std::string quoted(const std::string& tag) {
  constexpr std::size_t kMost = 60;
  return tag.size() <= kMost ? "\"" + tag + "\"" : "\"" + tag.substr(0, kMost) + "...\"";
}

RegionId Regions::id_of(const std::string& tag) {
  if (tag.empty()) throw UsageError("a region needs a tag that is not empty");
  std::lock_guard guard(mutex_);
  const auto found = std::find(tags_.begin(), tags_.end(), tag);
  if (found != tags_.end()) return static_cast<RegionId>(found - tags_.begin()) + 1;
  tags_.push_back(tag);
  count_.store(tags_.size(), std::memory_order_relaxed);
  return static_cast<RegionId>(tags_.size());
}

RegionId Regions::find(const std::string& tag) const {
  std::lock_guard guard(mutex_);
  const auto found = std::find(tags_.begin(), tags_.end(), tag);
  if (found != tags_.end()) return static_cast<RegionId>(found - tags_.begin()) + 1;
  constexpr std::size_t kShown = 8;
  std::string known;
  for (std::size_t i = 0; i < std::min(tags_.size(), kShown); ++i)
    known += (known.empty() ? "" : ", ") + quoted(tags_[i]);
  if (tags_.size() > kShown) known += " and " + std::to_string(tags_.size() - kShown) + " more";
  throw UsageError("this process has no region " + quoted(tag) + "; " +
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

void Regions::enter(RegionId region) { entered.push_back(region); }

void Regions::leave() {
  if (!entered.empty()) entered.pop_back();
}

bool Regions::carry() {
  if (entered.empty() || hooks.carry == nullptr) return false;
  hooks.carry(entered.back());
  return true;
}

void Regions::stop_carrying() { hooks.stop(); }

void Regions::set_hooks(const RegionHooks& wanted) { hooks = wanted; }

}  // namespace poolalloc
