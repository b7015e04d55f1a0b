// Operations: what a program does in units that have a name and say what they write, such as torch's operators.
//
// A kernel may write anywhere, so a launch makes everything on its device unknown (physical.h). Where the launch
// belongs to an operation, more is known: only what the operation returns or changes becomes unknown, and whoever named
// the operation may carry it out and write the result instead. csrc/simvalues does that for torch. It is a library of
// its own, compiled against the user's torch, which POOLALLOC_SIM_VALUES names; it is loaded once torch is and gets the
// table below.
//
// Operations belong to the thread that began them, and nest. A launch counts for the innermost one.
#pragma once

#include <cstddef>
#include <cstdint>

struct SimgpuOperations {
  // Begins and ends an operation of this thread. The name must stay valid until the end, which returns how many kernels
  // the operation itself launched; those of operations inside it, and those captured into a graph, do not count.
  void (*begin)(const char* name);
  std::uint64_t (*end)();
  // Whether an address is one of a device.
  bool (*on_device)(const void* address);
  // Reads bytes of a device, if all of them are known.
  bool (*read)(const void* address, std::size_t size, void* to);
  // Writes bytes to a device, which are known from then on.
  void (*write)(void* address, std::size_t size, const void* from);
  // Makes bytes of a device unknown; the name of the operation that would have written them is kept for messages.
  void (*forget)(void* address, std::size_t size, const char* name);
  // What the operation read and wrote, told before its end; see uses.h. `watching` says whether anybody listens.
  bool (*watching)();
  void (*use)(const void* address, std::size_t size, bool write);
  // What the innermost operation reads back from its own kernels, as a number of any size, is this.
  void (*answer)(std::int64_t value);
};

// What the library of POOLALLOC_SIM_VALUES exports: the path of the torch library that it was compiled against, and the
// function that takes the table.
inline constexpr char kSimvaluesTorch[] = "poolalloc_simvalues_torch";    // const char[]
inline constexpr char kSimvaluesAttach[] = "poolalloc_simvalues_attach";  // void(const SimgpuOperations*)

namespace poolalloc::simgpu {

struct Stream;

// Loads the library of POOLALLOC_SIM_VALUES if torch has been loaded by now. Takes no lock.
void attach_values();

// The functions below expect the simulator's lock.
// A kernel runs on a stream: it counts for this thread's operation, or makes everything on the device unknown.
void note_launch(Stream& stream);
// True while this thread's operation reads what its own kernels would have written; then `answer` is the number to
// give, if there is one.
bool reads_own_results(const std::int64_t** answer);
// The operation that would have written an address, or null; the same pointer for the same name.
const char* writer_of(std::uint64_t address);

}  // namespace poolalloc::simgpu
