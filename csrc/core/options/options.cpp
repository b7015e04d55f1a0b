// Options as text: "key:value,key:value", one value, a size. The table itself is options.def; poolalloc/config.py reads
// the same forms in Python and must accept and refuse the same texts (tests/core/test_config.py compares the two).
// Not here: TOML and the environment, which Python reads.
#include "core/options/options.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <locale>
#include <numeric>
#include <set>
#include <sstream>
#include <string_view>

#include "core/base/errors.h"

namespace poolalloc {
namespace {

using Wide = unsigned __int128;

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::string lowered(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(), lower);
  return result;
}

// In quotes and on one line, whatever is in it.
std::string quoted(std::string_view text) {
  std::string result(text);
  std::replace_if(result.begin(), result.end(), [](unsigned char c) { return c < ' '; }, '?');
  return '"' + result + '"';
}

// The digits at the front of `text`, removed from it.
std::string_view take_digits(std::string_view& text) {
  std::size_t length = 0;
  while (length < text.size() && is_digit(text[length])) ++length;
  std::string_view digits = text.substr(0, length);
  text.remove_prefix(length);
  return digits;
}

bool take_sign(std::string_view& text) {
  if (text.empty() || (text.front() != '+' && text.front() != '-')) return false;
  bool negative = text.front() == '-';
  text.remove_prefix(1);
  return negative;
}

// How many single-letter changes turn one word into the other.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      std::size_t substitution = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitution});
    }
  }
  return row.back();
}

const OptionInfo& nearest_option(std::string_view name) {
  const auto& table = option_table();
  std::string wanted = lowered(name);
  return *std::min_element(table.begin(), table.end(), [&](const OptionInfo& a, const OptionInfo& b) {
    return edit_distance(wanted, a.name) < edit_distance(wanted, b.name);
  });
}

std::string format_value(const OptionInfo& info, double value) {
  if (std::string_view(info.type) == "bytes") return format_bytes(static_cast<Bytes>(value));
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << value;
  return out.str();
}

std::vector<std::string_view> words_of(const OptionInfo& info) {
  constexpr std::string_view kBetween = " | ";
  std::vector<std::string_view> words;
  std::string_view rest = info.unit;
  for (std::size_t end; (end = rest.find(kBetween)) != std::string_view::npos;
       rest.remove_prefix(end + kBetween.size()))
    words.push_back(rest.substr(0, end));
  words.push_back(rest);
  return words;
}

std::string allowed(const OptionInfo& info) {
  std::string_view type = info.type;
  if (type == "choice") return "allowed: " + std::string(info.unit);
  if (type == "boolean") return "allowed: true or false";
  if (type == "text") return "allowed: " + std::string(info.unit) + " without a comma";
  if (type == "bins")
    return "allowed: " + std::string(info.unit) + " with + between, such as 6MiB/16/64+20MiB/0/8: at most " +
           std::to_string(ExactBin::kMostBins) + " sizes up to " + format_bytes(ExactBin::kMostBytes) +
           ", KEEP from 1 to " + std::to_string(ExactBin::kMostKept) + ", PREALLOCATE from 0 to KEEP";
  std::string range = "allowed: " + format_value(info, info.minimum) + " to " + format_value(info, info.maximum);
  return type == "bytes" ? range : range + " (" + info.unit + ")";
}

[[noreturn]] void throw_unknown(std::string_view name, std::string_view value) {
  const OptionInfo& nearest = nearest_option(name);
  std::string known;
  for (const OptionInfo& info : option_table()) known += (known.empty() ? "" : ", ") + std::string(info.name);
  throw ConfigError("unknown option " + quoted(name) + " (value " + quoted(value) +
                    "); nearest known option: " + nearest.name + " (" + allowed(nearest) + "); all options: " + known);
}

[[noreturn]] void throw_value(const OptionInfo& info, std::string_view value, std::string_view problem) {
  throw ConfigError("option " + std::string(info.name) + ": " + quoted(value) + " " + std::string(problem) + "; " +
                    allowed(info));
}

[[noreturn]] void throw_size(std::string_view text, std::string_view problem) {
  throw ConfigError("size " + quoted(text) + " " + std::string(problem) +
                    "; write plain bytes or a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as \"2 MiB\"");
}

// Text to one type of the table. Each returns false for a text that is no such value at all.
bool read(std::string_view text, Bytes* value) {
  try {
    *value = parse_bytes(std::string(text));
  } catch (const ConfigError&) {
    return false;
  }
  return true;
}

bool read(std::string_view text, std::int64_t* value) {
  bool negative = take_sign(text);
  std::string_view digits = take_digits(text);
  if (digits.empty() || !text.empty()) return false;
  // Beyond 2^63 the value stays there: it is a number, and out of every range.
  constexpr Wide kLimit = Wide{1} << 63;
  Wide magnitude = 0;
  for (char digit : digits) magnitude = std::min(magnitude * 10 + static_cast<unsigned>(digit - '0'), kLimit);
  if (!negative) magnitude = std::min(magnitude, kLimit - 1);
  *value = static_cast<std::int64_t>(negative ? -static_cast<__int128>(magnitude) : static_cast<__int128>(magnitude));
  return true;
}

bool read(std::string_view text, double* value) {
  std::string_view rest = text;
  take_sign(rest);
  std::size_t digits = take_digits(rest).size();
  if (!rest.empty() && rest.front() == '.') {
    rest.remove_prefix(1);
    digits += take_digits(rest).size();
  }
  if (digits == 0) return false;
  if (!rest.empty() && lower(rest.front()) == 'e') {
    rest.remove_prefix(1);
    take_sign(rest);
    if (take_digits(rest).empty()) return false;
  }
  if (!rest.empty()) return false;
  std::istringstream in{std::string(text)};
  in.imbue(std::locale::classic());  // the program may have set a locale that writes 0,5
  in >> *value;                      // beyond the largest double: the largest double, out of every range
  return true;
}

[[maybe_unused]] bool read(std::string_view text, bool* value) {
  std::string word = lowered(text);
  *value = word == "true" || word == "1";
  return *value || word == "false" || word == "0";
}

std::string_view nearest_word(const OptionInfo& info, std::string_view text) {
  const std::vector<std::string_view> words = words_of(info);
  const std::string wanted = lowered(text);
  return *std::min_element(words.begin(), words.end(), [&](std::string_view a, std::string_view b) {
    return edit_distance(wanted, a) < edit_distance(wanted, b);
  });
}

const char* type_problem(std::string_view type) {
  if (type == "bytes") return "is not a size in bytes (such as 1048576 or \"1 MiB\")";
  if (type == "integer") return "is not a whole number";
  if (type == "number") return "is not a number";
  return "is not true or false";
}

// Compared in the option's own type: as doubles, two sizes above 2^53 may look the same.
template <typename T>
bool in_range(const OptionInfo& info, T value) {
  return value >= static_cast<T>(info.minimum) && value <= static_cast<T>(info.maximum);
}

std::string word_problem(const OptionInfo& info, std::string_view text) {
  return "is none of the allowed words (nearest: " + std::string(nearest_word(info, text)) + ")";
}

void set_value(std::string_view& field, const OptionInfo& info, std::string_view text) {
  for (const std::string_view word : words_of(info))
    if (word == text) {
      field = word;
      return;
    }
  throw_value(info, text, word_problem(info, text));
}

void set_value(std::string& field, const OptionInfo&, std::string_view text) { field = text; }

std::string text_of(const ExactBin& bin) {
  return std::to_string(bin.size) + '/' + std::to_string(bin.preallocate) + '/' + std::to_string(bin.keep);
}

void check_value(const ExactBin& bin, const OptionInfo& info) {
  const auto check = [&](bool in_range, const char* part) {
    if (!in_range) throw_value(info, text_of(bin), "has a " + std::string(part) + " out of range");
  };
  check(bin.size != 0 && bin.size <= ExactBin::kMostBytes, "size");
  check(bin.keep >= 1 && bin.keep <= ExactBin::kMostKept, "KEEP");
  check(bin.preallocate >= 0 && bin.preallocate <= bin.keep, "PREALLOCATE");
}

void check_value(const std::vector<ExactBin>& bins, const OptionInfo& info) {
  std::set<Bytes> sizes;
  for (const ExactBin& bin : bins) {
    check_value(bin, info);
    if (!sizes.insert(round_up(bin.size, kGranularity)).second)
      throw_value(info, text_of(bin), "is a second bin of its size, in units of " + format_bytes(kGranularity));
    if (sizes.size() > ExactBin::kMostBins) throw_value(info, text_of(bin), "is one bin too many");
  }
}

// The text up to `separator`, trimmed; it and the separator are removed from `rest`.
std::string_view take_part(std::string_view& rest, char separator) {
  const std::size_t end = std::min(rest.find(separator), rest.size());
  const std::string_view part = trim(rest.substr(0, end));
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return part;
}

bool read(std::string_view text, ExactBin* bin) {
  if (std::count(text.begin(), text.end(), '/') != 2) return false;
  return read(take_part(text, '/'), &bin->size) && read(take_part(text, '/'), &bin->preallocate) &&
         read(trim(text), &bin->keep);
}

void set_value(std::vector<ExactBin>& field, const OptionInfo& info, std::string_view text) {
  std::vector<ExactBin> bins;
  for (bool more = !text.empty(); more;) {
    more = text.find('+') != std::string_view::npos;
    const std::string_view part = take_part(text, '+');
    if (!read(part, &bins.emplace_back())) throw_value(info, part, "is not " + std::string(info.unit));
    check_value(bins.back(), info);
  }
  check_value(bins, info);
  field = std::move(bins);
}

template <typename T>
void set_value(T& field, const OptionInfo& info, std::string_view text) {
  T value{};
  if (!read(text, &value)) throw_value(info, text, type_problem(info.type));
  if (!in_range(info, value)) throw_value(info, text, "is out of range");
  field = value;
}

void check_value(std::string_view word, const OptionInfo& info) {
  const std::vector<std::string_view> words = words_of(info);
  if (std::find(words.begin(), words.end(), word) == words.end()) throw_value(info, word, word_problem(info, word));
}

void check_value(const std::string& text, const OptionInfo& info) {
  if (text.find(',') != std::string::npos) throw_value(info, text, "has a comma in it");
}

template <typename T>
void check_value(T value, const OptionInfo& info) {
  if (!in_range(info, value)) throw_value(info, format_value(info, static_cast<double>(value)), "is out of range");
}

const OptionInfo& find_option(std::string_view name) {
  for (const OptionInfo& info : option_table())
    if (name == info.name) return info;
  throw InvariantViolation("options.def and option_table() disagree");
}

void apply(Options& options, std::string_view name, std::string_view value) {
  name = trim(name);
  value = trim(value);
#define OPTION(option, type, default_value, minimum, maximum, unit, help) \
  if (name == #option) return set_value(options.option, find_option(name), value);
#include "core/options/options.def"
#undef OPTION
  throw_unknown(name, value);
}

// A default is a figure or a word.
constexpr double figure(const char*) { return 0; }
constexpr double figure(None) { return 0; }
template <typename T>
constexpr double figure(T value) {
  return static_cast<double>(value);
}
constexpr const char* word(const char* value) { return value; }
template <typename T>
constexpr const char* word(T) {
  return "";
}

}  // namespace

const std::vector<OptionInfo>& option_table() {
  static const std::vector<OptionInfo> table = {
#define OPTION(name, type, default_value, minimum, maximum, unit, help) \
  {                                                                     \
      #name,                                                            \
      #type,                                                            \
      word(default_value),                                              \
      figure(default_value),                                            \
      static_cast<double>(minimum),                                     \
      static_cast<double>(maximum),                                     \
      unit,                                                             \
      help},
#include "core/options/options.def"
#undef OPTION
  };
  return table;
}

void set_option(Options& options, const std::string& name, const std::string& value) { apply(options, name, value); }

void parse_options(Options& options, const std::string& text) {
  Options result = options;
  std::string_view rest = trim(text);
  std::set<std::string, std::less<>> seen;
  bool more = !rest.empty();
  while (more) {
    std::size_t comma = rest.find(',');
    more = comma != std::string_view::npos;
    std::string_view entry = trim(rest.substr(0, comma));
    if (more) rest.remove_prefix(comma + 1);
    more = more && !trim(rest).empty();  // a comma may come last
    std::size_t colon = entry.find(':');
    if (colon == std::string_view::npos)
      throw ConfigError("options: " + quoted(entry) + " in " + quoted(text) +
                        " has no value; write key:value,key:value, such as \"" + option_table().front().name + ":0\"");
    std::string_view name = trim(entry.substr(0, colon));
    std::string_view value = trim(entry.substr(colon + 1));
    apply(result, name, value);
    if (!seen.emplace(name).second)
      throw ConfigError("option " + std::string(name) + ": " + quoted(value) + " is a second value in " + quoted(text) +
                        "; allowed: one");
  }
  check_options(result);
  options = std::move(result);
}

void check_options(const Options& options) {
#define OPTION(name, type, default_value, minimum, maximum, unit, help) check_value(options.name, find_option(#name));
#include "core/options/options.def"
#undef OPTION
  // A limit that leaves no room for one page would refuse every allocation.
  if (options.memory_limit != 0 && options.memory_limit < kPageBytes)
    throw_value(find_option("memory_limit"), format_bytes(options.memory_limit),
                "is less than one page of " + format_bytes(kPageBytes) + ", so nothing could be allocated");
  if (options.memory_fraction == 0)
    throw_value(find_option("memory_fraction"), "0", "leaves poolalloc no memory, so nothing could be allocated");
  if (options.memory_limit != 0 && options.prealloc > options.memory_limit)
    throw_value(find_option("prealloc"), format_bytes(options.prealloc),
                "is more than memory_limit, " + format_bytes(options.memory_limit));
  if (options.trim_low > options.trim_high)
    throw_value(find_option("trim_low"), format_bytes(options.trim_low),
                "is more than trim_high, " + format_bytes(options.trim_high));
  for (const ExactBin& bin : options.exact_bins)
    if (bin.size <= options.bin_limit)
      throw_value(
          find_option("exact_bins"), text_of(bin),
          "is no larger than bin_limit, " + format_bytes(options.bin_limit) + ", up to which all sizes have bins");
}

Bytes parse_bytes(const std::string& text) {
  static constexpr struct {
    const char* name;
    Bytes bytes;
  } kUnits[] = {{"", 1},
                {"b", 1},
                {"kb", 1000},
                {"mb", 1000ULL * 1000},
                {"gb", 1000ULL * 1000 * 1000},
                {"tb", 1000ULL * 1000 * 1000 * 1000},
                {"kib", 1ULL << 10},
                {"mib", 1ULL << 20},
                {"gib", 1ULL << 30},
                {"tib", 1ULL << 40}};
  std::string_view rest = trim(text);
  std::string_view whole = take_digits(rest);
  std::string_view fraction;
  if (!rest.empty() && rest.front() == '.') {
    rest.remove_prefix(1);
    fraction = take_digits(rest);
    if (fraction.empty()) throw_size(text, "is not a size");
  }
  if (whole.empty()) throw_size(text, "is not a size");
  std::string unit_name = lowered(trim(rest));
  const auto* unit = std::find_if(std::begin(kUnits), std::end(kUnits), [&](auto& u) { return unit_name == u.name; });
  if (unit == std::end(kUnits)) throw_size(text, "is not a size");

  // Exact arithmetic: doubles lose bytes above 2^53, and Python must come to the same figure.
  constexpr Wide kLimit = Wide{1} << 63;
  Wide bytes = 0;
  for (char digit : whole) bytes = std::min(bytes * 10 + static_cast<unsigned>(digit - '0'), kLimit);
  bytes *= unit->bytes;
  // The fraction times the unit, from its last digit on: what is carried out of the first digit are the whole bytes.
  Bytes carry = 0;
  for (std::size_t i = fraction.size(); i-- > 0;)
    carry = (static_cast<Bytes>(fraction[i] - '0') * unit->bytes + carry) / 10;
  bytes += carry;
  if (bytes >= kLimit) throw_size(text, "is too large (the largest is below 8388608 TiB)");
  return static_cast<Bytes>(bytes);
}

std::string format_bytes(Bytes bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (unit + 1 < std::size(kUnits) && bytes >> (10 * (unit + 1)) != 0) ++unit;
  char text[48];
  Bytes scale = Bytes{1} << (10 * unit);
  if (bytes % scale == 0)
    std::snprintf(text, sizeof text, "%llu %s", static_cast<unsigned long long>(bytes / scale), kUnits[unit]);
  else
    std::snprintf(text, sizeof text, "%.2f %s", static_cast<double>(bytes) / static_cast<double>(scale), kUnits[unit]);
  return text;
}

}  // namespace poolalloc
