// Reads the environment; see config.h.
#include "simgpu/config.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "simgpu/properties.h"

namespace poolalloc::simgpu {
namespace {

constexpr std::uint64_t kPage = 2 << 20;
constexpr std::size_t kMaxSharedName = 64;

const Card kCards[] = {
#define GPU(key, name, memory_bytes, major, minor, sm_count, clock_khz, mem_clock_khz, bus_bits, l2_bytes,      \
            smem_per_block, smem_optin, smem_per_sm, regs_per_sm, max_threads_per_sm, max_blocks_per_sm)        \
  {key,      name,     memory_bytes,   major,      minor,       sm_count,    clock_khz,          mem_clock_khz, \
   bus_bits, l2_bytes, smem_per_block, smem_optin, smem_per_sm, regs_per_sm, max_threads_per_sm, max_blocks_per_sm},
#include "simgpu/gpus.def"
#undef GPU
};

const Card* find_card(const char* key) {
  for (const Card& card : kCards) {
    if (std::strcmp(card.key, key) == 0) return &card;
  }
  return nullptr;
}

// The value of a numeric variable, or the default. A value out of range is reported and clears `valid`.
std::uint64_t number(const char* name, std::uint64_t standard, std::uint64_t lowest, std::uint64_t highest,
                     bool* valid) {
  const char* text = std::getenv(name);
  if (!text || !*text) return standard;
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (errno == 0 && *end == '\0' && text[0] != '-' && value >= lowest && value <= highest) return value;
  std::fprintf(stderr, "simgpu: %s is '%s'; it must be a whole number from %llu to %llu; no device is simulated\n",
               name, text, static_cast<unsigned long long>(lowest), static_cast<unsigned long long>(highest));
  *valid = false;
  return standard;
}

// Like CUDA, stops at the first entry that names no device.
std::vector<int> read_visible(int devices) {
  std::vector<int> visible;
  const char* text = std::getenv("CUDA_VISIBLE_DEVICES");
  if (!text) {
    for (int index = 0; index < devices; ++index) visible.push_back(index);
    return visible;
  }
  std::istringstream list(text);
  for (std::string entry; std::getline(list, entry, ',');) {
    entry.erase(std::remove_if(entry.begin(), entry.end(), [](unsigned char c) { return std::isspace(c); }),
                entry.end());
    int found = -1;
    for (int index = 0; index < devices && found < 0; ++index) {
      const bool by_number = entry == std::to_string(index);
      const bool by_uuid = entry.rfind("GPU-", 0) == 0 && entry.size() > 4 && uuid_text(index).rfind(entry, 0) == 0;
      if (by_number || by_uuid) found = index;
    }
    if (found < 0 || std::find(visible.begin(), visible.end(), found) != visible.end()) break;
    visible.push_back(found);
  }
  return visible;
}

// False if the text is no list of pairs of devices. Every pair is connected both ways.
bool read_peers(const char* text, int devices, std::uint64_t* peers) {
  if (std::strcmp(text, "none") == 0) return true;
  std::istringstream list(text);
  for (std::string pair; std::getline(list, pair, ',');) {
    int one = -1, other = -1, end = 0;
    if (std::sscanf(pair.c_str(), "%d-%d%n", &one, &other, &end) != 2 || pair[static_cast<std::size_t>(end)] != '\0')
      return false;
    if (one < 0 || other < 0 || one >= devices || other >= devices || one == other) return false;
    peers[one] |= 1ull << other;
    peers[other] |= 1ull << one;
  }
  return true;
}

void read_peers(Config& config, bool* valid) {
  const char* text = std::getenv("POOLALLOC_SIM_PEERS");
  if (text == nullptr || *text == '\0' || std::strcmp(text, "all") == 0) {
    for (int device = 0; device < config.devices; ++device) config.peers[device] = ~(1ull << device);
  } else if (!read_peers(text, config.devices, config.peers)) {
    std::fprintf(stderr,
                 "simgpu: POOLALLOC_SIM_PEERS is '%s'; it must be pairs of the %d devices such as 0-1,1-2, or none, or "
                 "all; no device is simulated\n",
                 text, config.devices);
    *valid = false;
  }
}

VmmFault read_vmm_fault(bool* valid) {
  const char* text = std::getenv("POOLALLOC_SIM_VMM_FAULT");
  if (text == nullptr || *text == '\0') return VmmFault::none;
  if (std::strcmp(text, "rdma") == 0) return VmmFault::rdma;
  if (std::strcmp(text, "access") == 0) return VmmFault::access;
  std::fprintf(stderr, "simgpu: POOLALLOC_SIM_VMM_FAULT is '%s'; it must be rdma or access; no device is simulated\n",
               text);
  *valid = false;
  return VmmFault::none;
}

// The name becomes part of a file's.
std::string read_shared(bool* valid) {
  const char* text = std::getenv("POOLALLOC_SIM_SHARED");
  if (text == nullptr || *text == '\0') return "";
  const std::string name = text;
  const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return c < 128 && (std::isalnum(c) || c == '.' || c == '_' || c == '-');
  });
  if (plain && name.size() <= kMaxSharedName) return name;
  std::fprintf(stderr,
               "simgpu: POOLALLOC_SIM_SHARED is '%s'; it must be a name of at most %zu letters, digits, '.', '_' and "
               "'-'; no device is simulated\n",
               text, kMaxSharedName);
  *valid = false;
  return "";
}

}  // namespace

Config read_config() {
  Config config;
  bool valid = true;
  const char* key = std::getenv("POOLALLOC_SIM_GPU");
  if (!key || !*key) key = "h100";
  config.card = find_card(key);
  if (!config.card) {
    std::fprintf(stderr, "simgpu: POOLALLOC_SIM_GPU is '%s', which is not a known card; no device is simulated\n", key);
    valid = false;
    config.card = &kCards[0];
  }
  config.memory_bytes = number("POOLALLOC_SIM_MEMORY", config.card->memory_bytes, kPage, 1ull << 44, &valid);
  config.devices = static_cast<int>(number("POOLALLOC_SIM_DEVICES", 1, 1, kMaxDevices, &valid));
  config.lag = number("POOLALLOC_SIM_LAG", 0, 0, 1ull << 40, &valid);
  config.copy_bytes = number("POOLALLOC_SIM_COPY_BYTES", config.copy_bytes, 0, 1ull << 44, &valid);
  config.patience_seconds = number("POOLALLOC_SIM_PATIENCE", config.patience_seconds, 0, 1u << 20, &valid);
  config.virtual_memory = number("POOLALLOC_SIM_VIRTUAL_MEMORY", 1, 0, 1, &valid) == 1;
  config.vmm_fault = read_vmm_fault(&valid);
  read_peers(config, &valid);
  config.shared = read_shared(&valid);
  config.keep_contents = number("POOLALLOC_SIM_KEEP_CONTENTS", 0, 0, 1, &valid) == 1;
  config.quiet = number("POOLALLOC_SIM_QUIET", 0, 0, 1, &valid) == 1;
  if (const char* path = std::getenv("POOLALLOC_SIM_REPORT")) config.report_path = path;
  if (const char* text = std::getenv("POOLALLOC_SIM_DRIVER_COSTS"); text && !parse_prices(text, &config.prices)) {
    std::fprintf(stderr,
                 "simgpu: POOLALLOC_SIM_DRIVER_COSTS is '%s'; it must be like create=30:0.03,map=1.5:0.03 "
                 "(microseconds, and the share of it for each further page of a handle); no device is simulated\n",
                 text);
    valid = false;
  }
  if (!valid) config.devices = 0;
  config.visible = read_visible(config.devices);
  return config;
}

}  // namespace poolalloc::simgpu
