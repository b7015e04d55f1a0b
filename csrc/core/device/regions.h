// Regions by their tags, and which one each thread allocates in.
//
// A thread's regions are a stack: the latest counts. A thread that works for another one, as those of autograd do, has
// no stack of its own; whoever knows for whom it works says so (RegionHooks).
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/base/types.h"

namespace poolalloc {

// A tag in a message: in quotes, its beginning alone if it is long.
std::string quoted(const std::string& tag);

// What a framework knows of threads that work for others. All are called on the thread that they are about.
struct RegionHooks {
  void (*carry)(RegionId) = nullptr;  // from now on, threads that work for this one are in the region
  void (*stop)() = nullptr;
  RegionId (*here)() = nullptr;  // for whom does this thread work, and where is that one; 0: nowhere
};

class POOLALLOC_API Regions {
 public:
  // Of a tag, which is new if need be. Throws UsageError for an empty one.
  RegionId id_of(const std::string& tag);
  // Throws UsageError, which names those there are, if there is none of that tag.
  RegionId find(const std::string& tag) const;
  std::vector<RegionId> find(const std::vector<std::string>& tags) const;
  std::string tag(RegionId region) const;
  std::vector<std::string> tags() const;
  bool none() const { return count_.load(std::memory_order_relaxed) == 0; }

  // The region that this thread allocates in, or 0.
  static RegionId here();
  static void enter(RegionId region);
  // The one entered last ends; nothing if there is none.
  static void leave();
  // While others work for this thread, until stop_carrying: they allocate where it does. False if it is nowhere.
  static bool carry();
  static void stop_carrying();
  // Before any thread enters one.
  static void set_hooks(const RegionHooks& hooks);

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> tags_;  // of region 1 and on
  std::atomic<std::size_t> count_{0};
};

}  // namespace poolalloc
