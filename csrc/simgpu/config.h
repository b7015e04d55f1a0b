// What is simulated: the card, how many of it, and the switches, all read once from the environment.
//
//   POOLALLOC_SIM_GPU          a key of gpus.def                                              (h100)
//   POOLALLOC_SIM_MEMORY       capacity of each device in bytes                               (the card's)
//   POOLALLOC_SIM_DEVICES      number of devices, 1 to 64                                     (1)
//   POOLALLOC_SIM_LAG          an event completes after this many further launches            (0: at once)
//   POOLALLOC_SIM_REPORT       file for the JSON report at exit                               (none)
//   POOLALLOC_SIM_OWNER        pid whose report gets that name; other processes append .pid   (first to load the
//   library) POOLALLOC_SIM_QUIET        1: nothing on stderr                                           (0)
//   POOLALLOC_SIM_COPY_BYTES   how much of one copy really moves                              (1 MiB)
//   POOLALLOC_SIM_PATIENCE     seconds a program may poll an event that lags before it completes     (10)
//   CUDA_VISIBLE_DEVICES       as for CUDA: the devices a process sees, by number or UUID     (all)
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace poolalloc::simgpu {

inline constexpr int kMaxDevices = 64;

// One line of gpus.def.
struct Card {
  const char* key;
  const char* name;
  std::uint64_t memory_bytes;
  int major, minor;
  int sm_count;
  int clock_khz, memory_clock_khz, bus_bits;
  int l2_bytes;
  int shared_per_block, shared_per_block_optin, shared_per_sm;
  int registers_per_sm;
  int max_threads_per_sm, max_blocks_per_sm;
};

struct Config {
  const Card* card = nullptr;
  std::uint64_t memory_bytes = 0;
  int devices = 0;  // 0 when the environment was wrong: the program then finds no device, and one line says why
  std::vector<int> visible;  // which of them CUDA shows, in its order
  std::uint64_t lag = 0;
  std::uint64_t copy_bytes = 1 << 20;
  std::uint64_t patience_seconds = 10;
  bool quiet = false;
  std::string report_path;
};

Config read_config();

}  // namespace poolalloc::simgpu
