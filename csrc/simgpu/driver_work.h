// What the simulated driver did, in the units that drivers charge for, and the time that it takes to do it.
//
// Handles and their pages of 2 MiB are counted for every allocator alike, under the names that poolalloc's own count
// has (csrc/driver/driver_work.h): handles of a kind as "map", their pages as "map_pages". Only work that was done
// counts.
//
// With POOLALLOC_SIM_DRIVER_COSTS work takes its price: the call that did it spins once it has let go of the
// simulator's lock, behind one lock of the process, since drivers do such work one after the other. Launches do not
// wait for that.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace poolalloc::simgpu {

#define SIM_DRIVER_WORK(X) \
  X(reserve)               \
  X(release)               \
  X(create)                \
  X(destroy)               \
  X(map)                   \
  X(allow_access)          \
  X(unmap)                 \
  X(allocate_segment)      \
  X(free_segment)

enum class Work {
#define X(name) name,
  SIM_DRIVER_WORK(X)
#undef X
};
#define X(name) +1
inline constexpr int kWorkKinds = SIM_DRIVER_WORK(X);
#undef X

struct DriverPrices {
  struct Price {
    double nanoseconds = 0;
    double further_page = 0;  // what each page of a handle beyond its first adds, as a share of that
  };
  bool any = false;
  Price of[kWorkKinds];
};

// Reads "create=30:0.03,map=1.5:0.03": microseconds, and the share for each further page. False if it is not that.
bool parse_prices(const char* text, DriverPrices* prices);

// Some handles of `bytes` altogether were made, mapped, ...; with or without the simulator's lock.
void note_work(Work kind, std::uint64_t handles, std::uint64_t bytes);

// Handles and pages by kind; kinds never done are missing.
std::map<std::string, std::uint64_t> work_counts();
// What calls have waited for so far, by their prices.
double priced_seconds();

// Of the work that this thread did and has not yet taken the time for. Without the simulator's lock.
inline thread_local double owed_nanoseconds = 0;
void take_time();
inline void take_owed_time() {
  if (owed_nanoseconds > 0) [[unlikely]]
    take_time();
}

}  // namespace poolalloc::simgpu
