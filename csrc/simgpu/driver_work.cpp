// See driver_work.h.
#include "simgpu/driver_work.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "simgpu/physical.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

constexpr const char* kNames[] = {
#define X(name) #name,
    SIM_DRIVER_WORK(X)
#undef X
};
constexpr std::memory_order relaxed = std::memory_order_relaxed;

struct Amount {
  std::atomic<std::uint64_t> handles{0}, pages{0};
};
// Plain static data, since torch calls CUDA from static destructors.
Amount amounts[kWorkKinds];
std::atomic<double> taken_nanoseconds{0};

// Never destroyed, for the same reason.
std::mutex& driver_lock() {
  static auto* const made = new std::mutex;
  return *made;
}

}  // namespace

bool parse_prices(const char* text, DriverPrices* prices) {
  while (*text != '\0') {
    int kind = 0;
    std::size_t length = 0;
    for (; kind < kWorkKinds; ++kind) {
      length = std::strlen(kNames[kind]);
      if (std::strncmp(text, kNames[kind], length) == 0 && text[length] == '=') break;
    }
    if (kind == kWorkKinds) return false;
    char* end = nullptr;
    const double microseconds = std::strtod(text + length + 1, &end);
    if (end == text + length + 1 || *end != ':') return false;
    const char* share_text = end + 1;
    const double share = std::strtod(share_text, &end);
    if (end == share_text || (*end != ',' && *end != '\0')) return false;
    if (!std::isfinite(microseconds) || !std::isfinite(share) || microseconds < 0 || share < 0) return false;
    prices->of[kind] = {microseconds * 1e3, share};
    prices->any = true;
    text = *end == ',' ? end + 1 : end;
  }
  return true;
}

void note_work(Work kind, std::uint64_t handles, std::uint64_t bytes) {
  const std::uint64_t pages = round_up(bytes, kGranularity) / kGranularity;
  Amount& amount = amounts[static_cast<int>(kind)];
  amount.handles.fetch_add(handles, relaxed);
  amount.pages.fetch_add(pages, relaxed);
  const DriverPrices& prices = sim().config.prices;
  if (!prices.any) return;
  const DriverPrices::Price& price = prices.of[static_cast<int>(kind)];
  const double further = pages > handles ? static_cast<double>(pages - handles) : 0;
  owed_nanoseconds += price.nanoseconds * (static_cast<double>(handles) + price.further_page * further);
}

std::map<std::string, std::uint64_t> work_counts() {
  std::map<std::string, std::uint64_t> result;
  for (int kind = 0; kind < kWorkKinds; ++kind) {
    if (const auto handles = amounts[kind].handles.load(relaxed)) result[kNames[kind]] = handles;
    if (const auto pages = amounts[kind].pages.load(relaxed)) result[std::string(kNames[kind]) + "_pages"] = pages;
  }
  return result;
}

double priced_seconds() { return taken_nanoseconds.load(relaxed) / 1e9; }

void take_time() {
  const std::chrono::duration<double, std::nano> owed(owed_nanoseconds);
  owed_nanoseconds = 0;
  taken_nanoseconds.fetch_add(owed.count(), relaxed);
  const std::lock_guard guard(driver_lock());
  for (const auto begin = std::chrono::steady_clock::now(); std::chrono::steady_clock::now() - begin < owed;) {
  }
}

}  // namespace poolalloc::simgpu
