// The few lines native tests need: checks that print what failed and where, and named cases.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace check {

struct Case {
  const char* name;
  std::function<void()> body;
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
inline void fail(const char* file, int line, const char* text) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, text);
  std::exit(1);
}

inline int& skipped() {
  static int count = 0;
  return count;
}

}  // namespace check

#define CHECK(condition) ((condition) ? void() : check::fail(__FILE__, __LINE__, #condition))
#define CHECK_THROWS(expression, Exception)             \
  do {                                                  \
    bool thrown = false;                                \
    try {                                               \
      (void)(expression);                               \
    } catch (const Exception&) {                        \
      thrown = true;                                    \
    }                                                   \
    CHECK(thrown && #expression " throws " #Exception); \
  } while (false)
// Leaves the case, which then does not count as passed.
#define SKIP(reason)                        \
  do {                                      \
    std::printf("  skipped: %s\n", reason); \
    ++check::skipped();                     \
    return;                                 \
  } while (false)
#define TEST(name)                                                                  \
  static void name();                                                               \
  static const bool name##_added = (check::cases().push_back({#name, name}), true); \
  static void name()

// Every test file holds its own main: the runner below.
int main() {
  for (const check::Case& test : check::cases()) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    test.body();
  }
  const int passed = static_cast<int>(check::cases().size()) - check::skipped();
  std::printf("%d tests passed, %d skipped\n", passed, check::skipped());
}
