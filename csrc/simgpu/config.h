// What is simulated: the card, how many of it, and the switches, all read once from the environment.
//
//   variable                      default      meaning
//   POOLALLOC_SIM_GPU             h100         a key of gpus.def
//   POOLALLOC_SIM_MEMORY          the card's   capacity of each device in bytes
//   POOLALLOC_SIM_DEVICES         1            number of devices, 1 to 64
//   POOLALLOC_SIM_LAG             0            an event completes after this many further launches; 0: at once
//   POOLALLOC_SIM_PATIENCE        10           seconds a program may poll a lagging event before it completes
//   POOLALLOC_SIM_REPORT          none         file for the JSON report at exit
//   POOLALLOC_SIM_OWNER           the first    pid whose report gets that name; other processes append .pid
//   POOLALLOC_SIM_QUIET           0            1: nothing on stderr
//   POOLALLOC_SIM_COPY_BYTES      1 MiB        how much of one copy really moves (copy.h)
//   POOLALLOC_SIM_VIRTUAL_MEMORY  1            0: the cards have no virtual memory management
//   POOLALLOC_SIM_VMM_FAULT       none         "rdma": access to memory made for network cards answers 999, as on WSL2;
//                                              "access": access to any mapped memory does, as on some virtual GPUs
//   POOLALLOC_SIM_PEERS           all          which devices reach each other's memory: "0-1,1-2", or "none"
//   POOLALLOC_SIM_SHARED          none         the processes of this name share the cards' memory (shared_card.h)
//   POOLALLOC_SIM_DRIVER_COSTS    none         what work takes that makes, maps or frees memory (driver_work.h)
//   POOLALLOC_SIM_KEEP_CONTENTS   0            1: bytes that the host wrote outlive launches (physical.h)
//   POOLALLOC_SIM_VALUES          none         the library that carries out operators (operations.h)
//   CUDA_VISIBLE_DEVICES          all          the devices a process sees, by number or UUID, as for CUDA
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "simgpu/driver_work.h"

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

// What answers with an unknown error although the card announces virtual memory management.
enum class VmmFault { none, rdma, access };

struct Config {
  const Card* card = nullptr;
  std::uint64_t memory_bytes = 0;
  int devices = 0;  // 0 when the environment was wrong: the program then finds no device, and one line says why
  std::vector<int> visible;  // which of them CUDA shows, in its order
  std::uint64_t lag = 0;
  std::uint64_t copy_bytes = 1 << 20;
  std::uint64_t patience_seconds = 10;
  bool virtual_memory = true;
  VmmFault vmm_fault = VmmFault::none;
  std::uint64_t peers[kMaxDevices] = {};  // of each device bit by bit, both by their number before CUDA_VISIBLE_DEVICES
  bool keep_contents = false;
  bool quiet = false;
  DriverPrices prices;
  std::string report_path;
  std::string shared;  // empty: the cards are this process's own
};

Config read_config();

}  // namespace poolalloc::simgpu
