// Copies and fills as work of a stream; see copy_work.h. Also the warning for a program that waits for a value.
#include "simgpu/copy_work.h"

#include "simgpu/report.h"

namespace poolalloc::simgpu {
namespace {

// A loop that waits for a value reads the same few bytes again and again and does little between. A training step that
// reads its loss launches hundreds of kernels between.
constexpr std::uint64_t kScalarBytes = 16;
constexpr std::uint64_t kLaunchesOfALoop = 64;
constexpr unsigned kSuspiciousReads = 2000;

void note_copy(const void* from, std::uint64_t size, const Device& device) {
  ThreadState& state = thread_state();
  const auto address = reinterpret_cast<std::uint64_t>(from);
  if (size > kScalarBytes || !sim().addresses.contains(address)) {
    state.repeated_reads = 0;
    return;
  }
  const bool same =
      address == state.last_read_address && device.launches - state.last_read_launches <= kLaunchesOfALoop;
  state.repeated_reads = same ? state.repeated_reads + 1 : 0;
  state.last_read_address = address;
  state.last_read_launches = device.launches;
  if (state.repeated_reads != kSuspiciousReads || sim().said_waiting) return;
  sim().said_waiting = true;
  say("the program read the same %llu bytes at 0x%llx %u times in a row; computed values are zeros here, so a loop "
      "that waits for another value never ends",
      static_cast<unsigned long long>(size), static_cast<unsigned long long>(address), kSuspiciousReads);
}

}  // namespace

Error copy_on(Stream& stream, void* to, const void* from, std::uint64_t size, int kind, const char* caller) {
  if (const Error error = check_copy(to, from, size, kind, caller); error != kSuccess) return error;
  note_copy(from, size, *stream.device);
  return enqueue(stream, abi::kNodeMemcpy, [=] { copy_bytes(to, from, size); });
}

Error copy_rows_on(Stream& stream, void* to, const void* from, const Rows& rows, int kind, const char* caller) {
  if (const Error error = check_copy_rows(to, from, rows, kind, caller); error != kSuccess) return error;
  return enqueue(stream, abi::kNodeMemcpy, [=] { copy_rows(to, from, rows); });
}

Error fill_on(Stream& stream, void* to, std::uint32_t value, unsigned width, std::uint64_t count, const char* caller) {
  if (const Error error = check_target(to, count * width, caller); error != kSuccess) return error;
  return enqueue(stream, abi::kNodeMemset, [=] { fill_bytes(to, value, width, count); });
}

Error fill_rows_on(Stream& stream, void* to, std::uint64_t pitch, int value, std::uint64_t width, std::uint64_t height,
                   const char* caller) {
  if (width == 0 || height == 0) return kSuccess;
  if (width > pitch) return kInvalidValue;
  if (const Error error = check_target(to, pitch * (height - 1) + width, caller); error != kSuccess) return error;
  return enqueue(stream, abi::kNodeMemset, [=] {
    for (std::uint64_t row = 0; row < height; ++row) {
      fill_bytes(static_cast<char*>(to) + row * pitch, static_cast<std::uint32_t>(value), 1, width);
    }
  });
}

Error copy_3d_on(Stream& stream, const abi::Memcpy3DParms& parameters, const char* caller) {
  if (parameters.srcArray || parameters.dstArray) return kNotSupported;
  const auto start = [](const abi::PitchedPtr& pointer, const abi::Pos3& position) {
    return static_cast<char*>(pointer.ptr) + (position.z * pointer.ysize + position.y) * pointer.pitch + position.x;
  };
  char* const to = start(parameters.dstPtr, parameters.dstPos);
  const char* const from = start(parameters.srcPtr, parameters.srcPos);
  const Rows rows{parameters.dstPtr.pitch, parameters.srcPtr.pitch, parameters.extent.width, parameters.extent.height};
  for (std::size_t slice = 0; slice < parameters.extent.depth; ++slice) {
    const Error error =
        copy_rows_on(stream, to + slice * parameters.dstPtr.ysize * parameters.dstPtr.pitch,
                     from + slice * parameters.srcPtr.ysize * parameters.srcPtr.pitch, rows, parameters.kind, caller);
    if (error != kSuccess) return error;
  }
  return kSuccess;
}

}  // namespace poolalloc::simgpu
