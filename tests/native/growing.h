// Options of tests that count pages and handles: under growth:tight a span is one page.
#pragma once

#include <string_view>

#include "core/options/options.h"

namespace poolalloc {

inline Options growing(std::string_view growth) {
  Options options;
  options.growth = growth;
  return options;
}

}  // namespace poolalloc
