// How much the random tests and the sweeps try. A sanitizer makes each step slow and looks at every access: less does.
// POOLALLOC_LONG_TESTS asks for many times more (make check-long).
#pragma once

#include <cstdint>
#include <cstdlib>

namespace stress {

#if defined(__SANITIZE_THREAD__)
inline constexpr int kSlowness = 4;
#elif defined(__SANITIZE_ADDRESS__)
inline constexpr int kSlowness = 2;
#else
inline constexpr int kSlowness = 1;
#endif

inline bool long_tests() {
  static const bool asked = std::getenv("POOLALLOC_LONG_TESTS") != nullptr;
  return asked;
}

// How many steps to take where `usual` are enough.
inline int steps(int usual) { return (long_tests() ? 10 : 1) * usual / kSlowness; }

// How far a sweep goes from one point to the next where `usual` is fine enough.
inline std::uint64_t stride(std::uint64_t usual) {
  if (long_tests()) return 1;
  return kSlowness == 1 ? usual : 5 * usual;
}

}  // namespace stress
