// See last_error.h.
#include "driver/last_error.h"

#include <cstdarg>
#include <cstdio>

namespace poolalloc {
namespace {

thread_local char text[512] = "";

}  // namespace

void set_last_error(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
}

const char* last_error_text() { return text; }

}  // namespace poolalloc
