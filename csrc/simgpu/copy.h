// Copies and fills between any two addresses, through the mappings, bounded.
//
// Of one copy the first POOLALLOC_SIM_COPY_BYTES really move; what lies behind them becomes unknown and reads as zeros.
// So a small machine holds what the host can look at, and a copy to a device of 80 GiB costs nothing like that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "simgpu/errors.h"

namespace poolalloc::simgpu {

struct Extent;
struct Region;

// Checks that a kind of copy (abi::CopyKind) fits its addresses, and that they may be touched. Size 0 always passes.
Error check_copy(const void* to, const void* from, std::uint64_t size, int kind, const char* caller);
Error check_target(const void* to, std::uint64_t size, const char* caller);

// Moves bytes; the caller has checked both ranges.
void copy_bytes(void* to, const void* from, std::uint64_t size);

struct Rows {
  std::uint64_t to_pitch;
  std::uint64_t from_pitch;
  std::uint64_t width;
  std::uint64_t height;
};
Error check_copy_rows(const void* to, const void* from, const Rows& rows, int kind, const char* caller);
void copy_rows(void* to, const void* from, const Rows& rows);

// Repeats a value of 1, 2 or 4 bytes.
void fill_bytes(void* to, std::uint32_t value, unsigned width, std::uint64_t count);

// Bytes of a device, as far as they are mapped: written, made unknown, asked for and read if all of them are known.
void write_device(std::uint64_t to, const char* from, std::uint64_t size);
void forget_device(std::uint64_t address, std::uint64_t size);
bool is_known_device(std::uint64_t address, std::uint64_t size);
bool read_known_device(std::uint64_t address, std::uint64_t size, char* to);
// Each piece of a range of a device, as far as it is mapped.
void walk_device(std::uint64_t address, std::uint64_t size,
                 const std::function<void(const Region&, Extent&, std::uint64_t offset, std::uint64_t bytes)>& f);

}  // namespace poolalloc::simgpu
