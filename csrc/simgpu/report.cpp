// Counters and the report; see report.h.
#include "simgpu/report.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "simgpu/driver_work.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

// Its own small lock: violations are reported from under the simulator's.
struct Counters {
  std::mutex mutex;
  std::map<std::string, std::uint64_t> violations;
  std::set<std::string> unsupported;
};

Counters& counters() {
  static auto* const made = new Counters;
  return *made;
}

std::atomic<CallCounter*> first_counter{nullptr};

// Line and violation formats are short; what does not fit is cut.
void print_line(const char* format, va_list arguments) {
  char line[512];
  int length = std::snprintf(line, sizeof line, "simgpu: ");
  length += std::vsnprintf(line + length, sizeof line - static_cast<std::size_t>(length) - 1, format, arguments);
  length = std::min(length, static_cast<int>(sizeof line) - 2);
  line[length++] = '\n';
  // One write, so that lines of several threads and processes do not mix.
  if (write(STDERR_FILENO, line, static_cast<std::size_t>(length)) < 0) return;
}

bool quiet() {
  const Simulator* state = sim_if_made();
  return state && state->config.quiet;
}

void append_text(std::string& out, const std::string& text) {
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  out += '"';
}

void append_counts(std::string& out, const std::map<std::string, std::uint64_t>& counts) {
  out += '{';
  for (const auto& [name, count] : counts) {
    if (out.back() != '{') out += ", ";
    append_text(out, name);
    out += ": ";
    out += std::to_string(count);
  }
  out += '}';
}

void append_device(std::string& out, const Device& device) {
  char text[256];
  std::snprintf(text, sizeof text,
                "{\"device\": %d, \"capacity_bytes\": %llu, \"used_bytes\": %llu, \"peak_used_bytes\": %llu, "
                "\"launches\": %llu}",
                device.index, static_cast<unsigned long long>(device.capacity),
                static_cast<unsigned long long>(device.used), static_cast<unsigned long long>(device.peak),
                static_cast<unsigned long long>(device.launches));
  out += text;
}

// cuMemAlloc_v2 counts as cuMemAlloc.
std::string plain_name(const char* name) {
  std::string text = name;
  if (const auto cut = text.rfind("_v"); cut != std::string::npos && text.rfind("cuda", 0) != 0) text.resize(cut);
  return text;
}

// The pid whose report takes the plain name. The first process that loads the library leaves its own for its children.
long owner() {
  const char* text = std::getenv("POOLALLOC_SIM_OWNER");
  return text ? std::strtol(text, nullptr, 10) : 0;
}

__attribute__((constructor)) void claim_report() {
  if (!std::getenv("POOLALLOC_SIM_REPORT") || std::getenv("POOLALLOC_SIM_OWNER")) return;
  setenv("POOLALLOC_SIM_OWNER", std::to_string(getpid()).c_str(), 1);
}

// Written beside its place and renamed, so that a reader never sees half of it.
__attribute__((destructor)) void write_report() {
  const Simulator* state = sim_if_made();
  if (!state || state->config.report_path.empty()) return;
  std::string path = state->config.report_path;
  if (owner() != getpid()) path += "." + std::to_string(getpid());
  const std::string text = report_json() + "\n";
  const std::string draft = path + ".part";
  std::FILE* file = std::fopen(draft.c_str(), "w");
  if (!file || std::fwrite(text.data(), 1, text.size(), file) != text.size() || std::fclose(file) != 0 ||
      std::rename(draft.c_str(), path.c_str()) != 0) {
    say("the report %s could not be written: %s", path.c_str(), std::strerror(errno));
  }
}

}  // namespace

CallCounter::CallCounter(const char* function_name) : name_(function_name), next_(first_counter.load()) {
  while (!first_counter.compare_exchange_weak(next_, this)) {
  }
}

std::uint64_t calls_of(const char* name) {
  std::uint64_t calls = 0;
  for (CallCounter* counter = first_counter.load(); counter; counter = counter->next_) {
    if (plain_name(counter->name_) == name) calls += counter->calls_.load(std::memory_order_relaxed);
  }
  return calls;
}

void say(const char* format, ...) {
  if (quiet()) return;
  va_list arguments;
  va_start(arguments, format);
  print_line(format, arguments);
  va_end(arguments);
}

void violation(const char* kind, const char* format, ...) {
  {
    const std::lock_guard guard(counters().mutex);
    ++counters().violations[kind];
  }
  if (quiet()) return;
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  say("%s: %s", kind, text);
}

void unsupported(const char* name) {
  {
    const std::lock_guard guard(counters().mutex);
    if (!counters().unsupported.insert(name).second) return;
  }
  say("%s is not simulated; it returns an error", name);
}

std::uint64_t violation_count() {
  const std::lock_guard guard(counters().mutex);
  std::uint64_t count = 0;
  for (const auto& [kind, number] : counters().violations) count += number;
  return count;
}

std::string report_json() {
  std::map<std::string, std::uint64_t> calls;
  for (CallCounter* counter = first_counter.load(); counter; counter = counter->next_) {
    calls[plain_name(counter->name_)] += counter->calls_.load(std::memory_order_relaxed);
  }
  std::string out = "{\"schema\": 1, \"gpu\": ";
  append_text(out, sim().config.card->key);
  out += ", \"pid\": " + std::to_string(getpid());
  out += ", \"devices\": [";
  {
    const Lock lock = lock_sim();
    for (const auto& device : sim().devices) {
      if (device->index > 0) out += ", ";
      append_device(out, *device);
    }
  }
  out += "], \"calls\": ";
  append_counts(out, calls);
  out += ", \"driver_work\": ";
  append_counts(out, work_counts());
  if (sim().config.prices.any) {
    char text[64];
    std::snprintf(text, sizeof text, ", \"driver_seconds\": %.9f", priced_seconds());
    out += text;
  }
  out += ", \"violations\": ";
  const std::lock_guard guard(counters().mutex);
  append_counts(out, counters().violations);
  out += '}';
  return out;
}

}  // namespace poolalloc::simgpu

// --- exported figures: simgpu.h ----------------------------------------------------------------------------------

using poolalloc::simgpu::device_exists;
using poolalloc::simgpu::lock_sim;
using poolalloc::simgpu::sim;

namespace {

poolalloc::simgpu::Device* device_at(int device) {
  return device_exists(device) ? sim().devices[static_cast<std::size_t>(device)].get() : nullptr;
}

}  // namespace

std::uint64_t simgpu_used_bytes(int device) {
  const auto lock = lock_sim();
  const auto* found = device_at(device);
  return found ? found->used : 0;
}

std::uint64_t simgpu_peak_used_bytes(int device) {
  const auto lock = lock_sim();
  const auto* found = device_at(device);
  return found ? found->peak : 0;
}

void simgpu_reset_peak(int device) {
  const auto lock = lock_sim();
  if (auto* found = device_at(device)) found->peak = found->used;
}

std::uint64_t simgpu_capacity_bytes(int device) {
  const auto* found = device_at(device);
  return found ? found->capacity : 0;
}

std::uint64_t simgpu_calls(const char* api_name) { return poolalloc::simgpu::calls_of(api_name); }

std::uint64_t simgpu_violations(void) { return poolalloc::simgpu::violation_count(); }

int simgpu_report_json(char* buffer, int size) {
  const std::string text = poolalloc::simgpu::report_json();
  if (buffer && size > 0) std::snprintf(buffer, static_cast<std::size_t>(size), "%s", text.c_str());
  return static_cast<int>(text.size());
}
