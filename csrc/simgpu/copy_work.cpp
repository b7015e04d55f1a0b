// Copies and fills as work of a stream; see copy_work.h. Also the warning for a program that waits for a value.
#include "simgpu/copy_work.h"

#include <cxxabi.h>

#include <cstdlib>
#include <string>

#include "simgpu/module.h"
#include "simgpu/operations.h"
#include "simgpu/report.h"
#include "simgpu/uses.h"

namespace poolalloc::simgpu {
namespace {

std::uint64_t address_of(const void* pointer) { return reinterpret_cast<std::uint64_t>(pointer); }

constexpr std::uint64_t kScalarBytes = 16;
// A loop that waits for a value reads the same few bytes again and again and does little between. A training step that
// reads its loss launches hundreds of kernels between.
constexpr std::uint64_t kLaunchesOfALoop = 64;
constexpr unsigned kSuspiciousReads = 2000;
// A loop may also do much between, as generation does for each token. It then asks for a boolean, at any distance.
constexpr unsigned kSuspiciousQuestions = 100;
constexpr std::int64_t kPatienceNs = 3'000'000'000;

// Names of kernels are long and mangled; torch's operators are neither.
std::string readable(const char* name) {
  int status = 0;
  char* plain = __cxxabiv1::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string text = plain ? plain : name;
  std::free(plain);
  constexpr std::size_t kLongest = 120;
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  return text;
}

// Whose value is read: the operation that would have written it, else the kernel launched last.
std::string culprit(const char* writer, const Device& device) {
  if (writer) return readable(writer);
  const char* kernel = kernel_name(device.last_kernel);
  return kernel ? readable(kernel) : "a kernel";
}

void say_waiting(const char* writer, const Device& device, std::uint64_t size, std::uint64_t address, unsigned times) {
  sim().said_waiting = true;
  say("the program read %llu bytes at 0x%llx that %s would have computed, %u times by now; what is not known here "
      "reads as "
      "zero or False, so a loop that waits for another value never ends",
      static_cast<unsigned long long>(size), static_cast<unsigned long long>(address), culprit(writer, device).c_str(),
      times);
}

void note_copy(const void* from, const void* to, std::uint64_t size, const Device& device) {
  ThreadState& state = thread_state();
  const std::uint64_t address = address_of(from);
  if (size > kScalarBytes || size == 0 || !sim().addresses.contains(address) ||
      sim().addresses.contains(address_of(to)) || is_known_device(address, size)) {
    state.repeated_reads = 0;
    return;
  }
  if (sim().said_waiting) return;
  const char* const writer = writer_of(address);
  const bool same = (address == state.last_read_address || (writer && writer == state.last_read_writer)) &&
                    device.launches - state.last_read_launches <= kLaunchesOfALoop;
  state.repeated_reads = same ? state.repeated_reads + 1 : 0;
  state.last_read_address = address;
  state.last_read_launches = device.launches;
  state.last_read_writer = writer;
  if (state.repeated_reads == kSuspiciousReads) say_waiting(writer, device, size, address, kSuspiciousReads);
  if (size != sizeof(bool)) return;
  const std::int64_t now = now_ns();
  if (state.questions++ == 0) state.first_question_ns = now;
  if (state.questions >= kSuspiciousQuestions && now - state.first_question_ns > kPatienceNs) {
    say_waiting(writer, device, size, address, state.questions);
  }
}

}  // namespace

Error copy_on(Stream& stream, void* to, const void* from, std::uint64_t size, int kind, const char* caller) {
  if (const Error error = check_copy(to, from, size, kind, caller); error != kSuccess) return error;
  if (!stream.capture) note_copy(from, to, size, *stream.device);
  const Error error = enqueue(stream, abi::kNodeMemcpy, [=] { copy_bytes(to, from, size); });
  if (error == kSuccess) {
    note_use(stream, address_of(from), size, false, caller);
    note_use(stream, address_of(to), size, true, caller);
  }
  return error;
}

Error copy_rows_on(Stream& stream, void* to, const void* from, const Rows& rows, int kind, const char* caller) {
  if (const Error error = check_copy_rows(to, from, rows, kind, caller); error != kSuccess) return error;
  return enqueue(stream, abi::kNodeMemcpy, [=] { copy_rows(to, from, rows); });
}

Error fill_on(Stream& stream, void* to, std::uint32_t value, unsigned width, std::uint64_t count, const char* caller) {
  if (const Error error = check_target(to, count * width, caller); error != kSuccess) return error;
  const Error error = enqueue(stream, abi::kNodeMemset, [=] { fill_bytes(to, value, width, count); });
  if (error == kSuccess) note_use(stream, address_of(to), count * width, true, caller);
  return error;
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
