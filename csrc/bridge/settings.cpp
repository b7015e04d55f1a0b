#include "bridge/settings.h"

#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDAAllocatorConfig.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "plugin/plugin.h"

namespace poolalloc::bridge {
namespace {

using c10::CachingAllocator::AcceleratorAllocatorConfig;
using c10::CachingAllocator::ConfigTokenizer;
using c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig;

Warn warn_user = nullptr;

// --- what becomes of each setting ----------------------------------------------------------------------------------
//
// Every key that a torch of today knows has a line; docs/torch-interface.md has the same table. A test compares both
// with the keys of torch's own parser, so that a new one is noticed.

struct Rule {
  std::string_view key;
  std::string_view fine;  // a value that is granted; "*": any
  std::string_view why;   // another has no effect: why
};

constexpr std::string_view kHost = "it is about the host's memory";
constexpr std::string_view kNoSegments = "poolalloc has no segments of fixed sizes to keep whole";
constexpr std::string_view kNoLock = "no lock is held that another stream needs";
constexpr std::string_view kAddresses = "poolalloc reserves addresses by its own option address_space";
constexpr std::string_view kMapped =
    "poolalloc maps memory by pages; POOLALLOC_CONF=segments:true makes it take whole allocations from the start, and "
    "this setting does so at run time";

constexpr Rule kRules[] = {
    {"backend", "native", "poolalloc has taken its place"},
    {"expandable_segments", "True", kMapped},
    {"expandable_segments_reserve", "", kAddresses},
    {"expandable_segments_reserve_by_class", "", kAddresses},
    {"garbage_collection_threshold", "", "idle pages serve every request before new ones are made"},
    {"graph_capture_record_stream_reuse", "*", ""},
    {"large_segment_size_mb", "", kNoSegments},
    {"max_non_split_rounding_mb", "", kNoSegments},
    {"max_split_size_mb", "", kNoSegments},
    {"per_process_memory_fraction", "*", ""},
    {"pinned_free_catch_all", "*", kHost},
    {"pinned_max_cached_size_mb", "*", kHost},
    {"pinned_max_round_threshold_mb", "*", kHost},
    {"pinned_num_register_threads", "*", kHost},
    {"pinned_reserve_segment_size_mb", "*", kHost},
    {"pinned_use_background_threads", "*", kHost},
    {"pinned_use_cuda_host_register", "*", kHost},
    {"pinned_use_hip_host_register", "*", kHost},
    {"release_lock_on_cudamalloc", "*", kNoLock},
    {"release_lock_on_hipmalloc", "*", kNoLock},
    {"roundup_power2_divisions", "", "poolalloc has size classes of its own (option bin_limit)"},
    {"throw_on_cudamalloc_oom", "False", "the driver is asked before a request is refused"},
};

const Rule* rule_of(std::string_view key) {
  const Rule* rule =
      std::find_if(std::begin(kRules), std::end(kRules), [key](const Rule& one) { return one.key == key; });
  return rule != std::end(kRules) ? rule : nullptr;
}

// Why a setting with this value has no effect; empty if it has one, or asks for what is so anyway.
std::string_view why_no_effect(std::string_view key, std::string_view value) {
  const Rule* rule = rule_of(key);
  if (rule == nullptr) return "this version of poolalloc does not know it";
  return rule->fine == "*" || rule->fine == value ? std::string_view() : rule->why;
}

// --- torch's own parser --------------------------------------------------------------------------------------------

enum class Given { in_environment, at_run_time };

thread_local std::string parsed_backend;        // empty: no text is parsed now, or none that names a backend
thread_local Given given = Given::at_run_time;  // the text that torch is parsing

// While torch parses a text. It insists that a backend named there is the one that serves it, and ends with an internal
// error otherwise; so poolalloc goes by that name meanwhile.
class Parsing {
 public:
  Parsing(const std::string& text, Given how) : before_(std::exchange(given, how)) {
    const ConfigTokenizer tokens(text);
    for (std::size_t i = 0; i + 2 < tokens.size(); ++i)
      if (tokens[i] == "backend" && tokens[i + 1] == ":") parsed_backend = tokens[i + 2];
  }
  ~Parsing() {
    parsed_backend.clear();
    given = before_;
  }
  Parsing(const Parsing&) = delete;
  Parsing& operator=(const Parsing&) = delete;

 private:
  const Given before_;
};

// Where torch's parser for CUDA looks, in its order.
std::string text_of_environment() {
  for (const char* name : {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"})
    if (const char* text = std::getenv(name)) return text;
  return {};
}

// The environment is read once, by whoever asks first.
void read_environment() {
  const Parsing parsing(text_of_environment(), Given::in_environment);
  CUDAAllocatorConfig::instance();
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

// torch has parsed the text already, and refused what is wrong. `expandable_segments` is often in an environment that
// was written for torch's own allocator; a program that asks at run time needs whole allocations for some library.
void apply_text(const std::string& text, Given how) {
  const ConfigTokenizer tokens(text);
  for (std::size_t i = 0; i + 2 < tokens.size(); ++i) {
    const std::string key = tokens[i];
    if (key == "expandable_segments" && how == Given::at_run_time)
      plugin_allocator().want_segments(tokens[i + 2] == "False");
    else if (const std::string_view why = why_no_effect(key, tokens[i + 2]); !why.empty())
      warn_once(key, why);
    if (key == "graph_capture_record_stream_reuse") plugin_allocator().set_reuse_in_captures(tokens[i + 2] == "True");
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
    {
      const Parsing parsing(text, given);
      if (torchs) torchs(text);
    }
    apply_text(text, given);
  };
  // Anybody may be the first to ask torch for a setting, which makes it read the environment: it is done here, where
  // the backend's name is looked after. What is wrong in it is an error when CUDA is initialized, as under torch.
  try {
    read_environment();
  } catch (const std::exception&) {
  }
}

const std::string& backend_being_parsed() { return parsed_backend; }

void apply_settings_of_environment() {
  read_environment();  // if nothing has yet
  apply_text(c10::CachingAllocator::getAllocatorSettings(), Given::in_environment);
}

bool without_caching() { return std::getenv("PYTORCH_NO_CUDA_MEMORY_CACHING") != nullptr; }

std::string describe_settings() {
  std::string lines;
  for (const std::string& key : AcceleratorAllocatorConfig::getKeys()) {
    const Rule* rule = rule_of(key);
    lines += key + (rule == nullptr ? " unknown" : rule->fine == "*" ? " any" : " " + std::string(rule->fine)) + "\n";
  }
  return lines;
}

}  // namespace poolalloc::bridge
