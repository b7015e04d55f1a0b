// The text behind Driver::last_error(), one a thread. Plain characters, so that it outlives every destructor.
#pragma once

namespace poolalloc {

// As printf writes it; what does not fit is cut off.
void set_last_error(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Of this thread; empty before the first.
const char* last_error_text();

}  // namespace poolalloc
