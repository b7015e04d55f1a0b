// Options of an allocator, generated from options.def, and the text forms they come in.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/types.h"

namespace poolalloc {

// A size whose blocks a stream keeps for the next requests of it (exact_bins.h). In the bounds below, PREALLOCATE is at
// most KEEP, and no two sizes are the same after rounding to kGranularity.
struct ExactBin {
  static constexpr std::size_t kMostBins = 64;
  static constexpr std::int64_t kMostKept = 65536;
  static constexpr Bytes kMostBytes = Bytes{1} << 40;

  Bytes size = 0;
  std::int64_t preallocate = 0;
  std::int64_t keep = 0;

  friend bool operator==(const ExactBin&, const ExactBin&) = default;
};

// The default of options that are lists.
struct None {
  template <typename T>
  operator std::vector<T>() const {
    return {};
  }
};
inline constexpr None none;

struct POOLALLOC_API Options {
  using bytes = Bytes;
  using integer = std::int64_t;
  using number = double;
  using boolean = bool;
  using choice = std::string_view;  // one of the table's words: they live as long as the program
  using text = std::string;
  using bins = std::vector<ExactBin>;
#define OPTION(name, type, default_value, minimum, maximum, unit, help) type name = default_value;
#include "core/options/options.def"
#undef OPTION
};

// One row of the table, for those who print, check or document it.
struct OptionInfo {
  const char* name;
  const char* type;          // "bytes", "integer", "number", "boolean", "choice", "text" or "bins"
  const char* default_word;  // of a choice or text, whose figures are 0, as those of bins are
  double default_value;
  double minimum;
  double maximum;
  const char* unit;  // of a choice its words, with " | " between them; of a text what it is; of bins their form
  const char* help;
};
POOLALLOC_API const std::vector<OptionInfo>& option_table();

// Sets one option from text. Throws ConfigError naming the key, the value, what is allowed and the nearest known key.
POOLALLOC_API void set_option(Options& options, const std::string& name, const std::string& value);
// Reads "key:value,key:value" (POOLALLOC_CONF) on top of `options`. Throws ConfigError.
POOLALLOC_API void parse_options(Options& options, const std::string& text);
// Throws ConfigError if an option is out of range or two contradict each other.
POOLALLOC_API void check_options(const Options& options);
// Whether they ask for the background thread.
inline bool tended(const Options& options) {
  return options.reserve_ahead != 0 || options.trim_high != 0 || options.trim_after != 0;
}
// "262144", "256 KiB", "2MiB", "1.5 GiB" or "10 GB" to bytes. Throws ConfigError.
POOLALLOC_API Bytes parse_bytes(const std::string& text);
// 2097152 to "2 MiB", 1536 to "1.50 KiB".
POOLALLOC_API std::string format_bytes(Bytes bytes);

}  // namespace poolalloc
