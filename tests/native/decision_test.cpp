// The switch of the history: what was switched on last stays on.
#include "bridge/decision.h"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>

using poolalloc::bridge::Decision;

namespace {

TEST_CASE("who looked earlier does not act later") {
  Decision decision;
  std::atomic<bool> wanted{false}, on{true}, looked{false}, second_done{false};
  std::thread first([&] {
    decision.decide([&] { return wanted.load(); },
                    [&](bool yes) {
                      looked = true;  // and saw that nobody wants it
                      for (int turns = 0; turns < 1000 && !second_done; ++turns) std::this_thread::yield();
                      on = yes;
                    });
  });
  while (!looked) std::this_thread::yield();
  wanted = true;
  decision.decide([&] { return wanted.load(); }, [&](bool yes) { on = yes; });
  second_done = true;
  first.join();
  CHECK(on);
}

}  // namespace
