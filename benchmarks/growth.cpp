// How long a growing program waits for memory: nothing ahead, all of it preallocated, or a reserve that a background
// thread keeps. A modelled device whose calls take as long as is published for real ones; the program works, or lets
// the device work, for a while between its requests. Prints a table.
//
//   build/cmake/native_growth
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "core/allocator.h"
#include "driver/model_driver.h"
#include "forwarding_driver.h"

using namespace poolalloc;
using Clock = std::chrono::steady_clock;

namespace {

class CostlyDriver final : public ForwardingDriver {
 public:
  using ForwardingDriver::ForwardingDriver;
  Status create(Device device, Bytes bytes, Handle* handle) override {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    return ForwardingDriver::create(device, bytes, handle);
  }
  Status map(Device device, Address address, Bytes bytes, Handle handle) override {
    spend(std::chrono::microseconds(2));
    return ForwardingDriver::map(device, address, bytes, handle);
  }
  Status allow_access(Device device, Address address, Bytes bytes) override {
    spend(std::chrono::microseconds(40) * static_cast<long>(bytes / kPageBytes));
    return ForwardingDriver::allow_access(device, address, bytes);
  }

 private:
  static void spend(Clock::duration time) {
    for (const auto end = Clock::now() + time; Clock::now() < end;) {
    }
  }
};

struct Waits {
  double total, half, most;  // milliseconds, microseconds, microseconds
};

Waits grow(const Options& options, Bytes step, int steps, std::chrono::microseconds between) {
  ModelDriver model;
  CostlyDriver driver(model);
  Allocator allocator(driver, options);
  allocator.free(allocator.allocate(1, 0, 0));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  std::vector<double> waits;
  for (int i = 0; i < steps; ++i) {
    const auto begin = Clock::now();
    allocator.allocate(step, 0, 0);
    waits.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    std::this_thread::sleep_for(between);
  }
  double total = 0;
  for (const double wait : waits) total += wait;
  std::sort(waits.begin(), waits.end());
  return {total / 1000, waits[waits.size() / 2], waits.back()};
}

}  // namespace

int main() {
  constexpr Bytes kStep = 5 * kPageBytes;
  constexpr int kSteps = 100;
  std::printf(
      "| work between requests | ahead | waited in all | median | longest |\n| --- | --- | --- | --- | --- |\n");
  for (const int between : {0, 500, 2000}) {
    for (const char* ahead : {"nothing", "prealloc", "reserve_ahead"}) {
      Options options;
      if (ahead[0] == 'p') options.prealloc = (kSteps + 1) * kStep;
      if (ahead[0] == 'r') options.reserve_ahead = 4 * kStep;
      const Waits waits = grow(options, kStep, kSteps, std::chrono::microseconds(between));
      std::printf("| %d us | %s | %.1f ms | %.0f us | %.0f us |\n", between, ahead, waits.total, waits.half,
                  waits.most);
    }
  }
}
