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
  std::printf("%zu tests passed\n", check::cases().size());
}
