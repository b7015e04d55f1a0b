// How long a growing program waits for memory: nothing ahead, all of it preallocated, or a reserve that a background
// thread keeps. A modelled device whose work takes its price by the default list; the program works, or lets the device
// work, for a while between its requests. Prints both axes: what was reserved, and how long the program waited.
//
//   build/cmake/native_growth
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "core/allocator.h"
#include "driver/driver_work.h"
#include "driver/model_driver.h"
#include "forwarding_driver.h"

using namespace poolalloc;
using Clock = std::chrono::steady_clock;

namespace {

// Takes the time of the default price list (benchmarks/results/driver-costs/default.json), for each handle.
class CostlyDriver final : public ForwardingDriver {
 public:
  using ForwardingDriver::ForwardingDriver;
  Status create(Device device, Bytes bytes, Handle* handle) override {
    const Status status = ForwardingDriver::create(device, bytes, handle);
    if (status == Status::ok) spend(30, 1, bytes);
    return status;
  }
  Status map(Device device, Address address, Bytes bytes, Handle handle) override {
    const Status status = ForwardingDriver::map(device, address, bytes, handle);
    if (status == Status::ok) spend(1.5, 1, bytes);
    starts_.add(address);
    return status;
  }
  Status allow_access(Device device, Address address, Bytes bytes) override {
    const Status status = ForwardingDriver::allow_access(device, address, bytes);
    if (status == Status::ok) spend(40, starts_.count(address, bytes), bytes);
    return status;
  }

 private:
  static void spend(double microseconds, std::uint64_t handles, Bytes bytes) {
    const auto count = static_cast<double>(handles);
    const double further = static_cast<double>(bytes / kPageBytes) - count;
    const std::chrono::duration<double, std::micro> time(microseconds * (count + 0.03 * further));
    for (const auto begin = Clock::now(); Clock::now() - begin < time;) {
    }
  }

  MappingStarts starts_;
};

struct Outcome {
  double total, half, most;  // of the waits: milliseconds, microseconds, microseconds
  double overhead;           // peak reserved / peak requested
};

Outcome grow(const Options& options, Bytes step, int steps, std::chrono::microseconds between) {
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
  const DeviceStats stats = allocator.stats(0);
  return {total / 1000, waits[waits.size() / 2], waits.back(),
          static_cast<double>(stats.reserved.peak) / static_cast<double>(stats.requested.peak)};
}

}  // namespace

int main() {
  constexpr Bytes kStep = 5 * kPageBytes;
  constexpr int kSteps = 100;
  std::printf(
      "| work between requests | ahead | overhead | waited in all | median | longest |\n"
      "| --- | --- | --- | --- | --- | --- |\n");
  for (const int between : {0, 500, 2000}) {
    for (const char* ahead : {"nothing", "prealloc", "reserve_ahead"}) {
      Options options;
      if (ahead[0] == 'p') options.prealloc = (kSteps + 1) * kStep;
      if (ahead[0] == 'r') options.reserve_ahead = 4 * kStep;
      const Outcome found = grow(options, kStep, kSteps, std::chrono::microseconds(between));
      std::printf("| %d us | %s | %.3f | %.1f ms | %.0f us | %.0f us |\n", between, ahead, found.overhead, found.total,
                  found.half, found.most);
    }
  }
}
