// Simulated cards that several processes share: POOLALLOC_SIM_SHARED=NAME (poolalloc sim --shared NAME).
//
// The processes of one NAME map a file in /dev/shm. Each owns a slot there with the bytes it uses on each device; what
// is used of a device is the sum. Only bytes are common. Contents and addresses belong to each process.
//
// Nothing here survives a process that is killed, at whatever moment. Mutual exclusion and life are record locks of
// that file (fcntl), which the kernel drops when a process ends or execs, and which a child of fork() does not inherit:
// one byte is the mutex, and one byte per slot says that its owner lives. A process changes nothing but its own slot,
// by one store, so there is no state half-way.
//
// The simulator's lock guards everything.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace poolalloc::simgpu {

struct Config;

struct ProcessUse {
  std::int64_t process;
  std::uint64_t used;
};

class SharedCard {
 public:
  explicit SharedCard(const Config& config);

  // Joins the processes that share the card, unless this one has. False, after a line on stderr, where it cannot.
  bool join();
  // Devices go by their numbers before CUDA_VISIBLE_DEVICES.
  // Takes bytes of a device; false when they are more than all processes together leave free.
  bool take(int device, std::uint64_t bytes);
  void give(int device, std::uint64_t bytes);
  // What all living processes use of a device.
  std::uint64_t used(int device);
  // The living processes that use any of a device.
  std::vector<ProcessUse> processes(int device);
  // Gives everything back at the end of the process. The last one removes the file.
  void leave();
  // In a child of fork(), which has no slot until it uses a device.
  void leave_to_parent();

 private:
  struct File;
  // Why the file cannot be used, or nothing.
  std::string open_file();
  std::string enter_file(int descriptor, bool* gone);
  std::uint64_t sum(int device) const;
  void drop_the_dead();
  void close_file();

  const Config& config_;
  std::string path_;
  int descriptor_ = -1;
  File* file_ = nullptr;  // null: not joined
  int slot_ = -1;
  bool refused_ = false;  // joining failed once, or the process has left
};

}  // namespace poolalloc::simgpu
