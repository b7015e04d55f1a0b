#include "bridge/settings.h"

#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDAAllocatorConfig.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <string>
#include <string_view>

#include "plugin/plugin.h"

namespace poolalloc::bridge {
namespace {

using c10::CachingAllocator::AcceleratorAllocatorConfig;
using c10::CachingAllocator::ConfigTokenizer;
using c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig;

Warn warn_user = nullptr;

// Why a setting with this value has no effect; empty if it has one, or asks for what is so anyway.
// docs/torch-interface.md has the same table.
std::string_view why_no_effect(std::string_view key, std::string_view value) {
  if (key.starts_with("pinned_") || key == "per_process_memory_fraction") return {};
  if (key.starts_with("release_lock_on_")) return {};  // no lock of other streams is held then
  if (key == "backend") return value == "native" ? "" : "poolalloc has taken its place";
  if (key == "expandable_segments")
    return value == "True" ? "" : "poolalloc always maps memory by pages, and cannot do otherwise";
  if (key == "garbage_collection_threshold") return "idle pages serve every request before new ones are made";
  if (key == "max_split_size_mb" || key == "max_non_split_rounding_mb" || key == "large_segment_size_mb")
    return "poolalloc has no segments of fixed sizes to keep whole";
  if (key == "roundup_power2_divisions") return "poolalloc has size classes of its own (option bin_limit)";
  if (key.starts_with("expandable_segments_reserve"))
    return "poolalloc reserves addresses by its own option address_space";
  return "poolalloc has no counterpart";
}

void warn_once(const std::string& key, std::string_view why) {
  static std::mutex mutex;
  static auto* const warned = new std::set<std::string>;
  {
    const std::lock_guard guard(mutex);
    if (!warned->insert(key).second) return;
  }
  const std::string text = "poolalloc: torch's allocator setting " + key + " has no effect: " + std::string(why);
  if (warn_user != nullptr)
    warn_user(text.c_str());
  else
    TORCH_WARN(text);
}

// torch has parsed the text already, and refused what is wrong.
void apply(const std::string& text) {
  const ConfigTokenizer tokens(text);
  for (std::size_t i = 0; i + 2 < tokens.size(); ++i) {
    const std::string key = tokens[i];
    if (const std::string_view why = why_no_effect(key, tokens[i + 2]); !why.empty()) warn_once(key, why);
    if (key == "per_process_memory_fraction")
      plugin_allocator().set_memory_fraction(CUDAAllocatorConfig::per_process_memory_fraction());
    i = tokens.skipKey(i) + 1;  // at the comma
  }
}

}  // namespace

void follow_settings(Warn warn) {
  warn_user = warn;
  auto& hook = AcceleratorAllocatorConfig::getConfigParserHook();
  hook = [torchs = hook](const std::string& text) {
    if (torchs) torchs(text);
    apply(text);
  };
}

void apply_settings_of_environment() {
  CUDAAllocatorConfig::instance();  // reads it, if nothing has yet
  apply(c10::CachingAllocator::getAllocatorSettings());
}

}  // namespace poolalloc::bridge
