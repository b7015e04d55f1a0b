// Counters of API calls, violations of CUDA's rules, lines on stderr, and the JSON report.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "simgpu/simgpu.h"

namespace poolalloc::simgpu {

// One API function's number of calls. Made on the function's first call and never destroyed.
class CallCounter {
 public:
  explicit CallCounter(const char* function_name);
  void add() { calls_.fetch_add(1, std::memory_order_relaxed); }

 private:
  friend std::uint64_t calls_of(const char* name);
  friend std::string report_json();
  const char* name_;
  CallCounter* next_;
  std::atomic<std::uint64_t> calls_{0};
};

#define SIM_COUNT_CALL()                                       \
  do {                                                         \
    static ::poolalloc::simgpu::CallCounter counter(__func__); \
    counter.add();                                             \
  } while (0)

std::uint64_t calls_of(const char* name);

// One line on stderr, "simgpu: ...", unless POOLALLOC_SIM_QUIET is set.
void say(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The caller broke a rule: counts it under `kind` and says so. May be called with or without the simulator's lock.
void violation(const char* kind, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Something the simulator does not do: says so once per name.
void unsupported(const char* name);

std::uint64_t violation_count();

// The report of the simulated devices as JSON. Takes the simulator's lock.
std::string report_json();

}  // namespace poolalloc::simgpu
