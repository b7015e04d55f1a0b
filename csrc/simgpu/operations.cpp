// Operations of threads, and the door for who carries them out; see operations.h.
#include "simgpu/operations.h"

#include <dlfcn.h>
#include <limits.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "simgpu/copy.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"
#include "simgpu/uses.h"

namespace poolalloc::simgpu {
namespace {

struct Operation {
  const char* name;
  std::uint64_t launches = 0;
  std::uint64_t stream = 0;  // of the last of them
  std::optional<std::int64_t> answer;
};

std::vector<Operation>& operations() {
  thread_local std::vector<Operation> stack;
  return stack;
}

// Who would have written the small results of late, a few hundred of them: a program that waits for one asks soon.
struct Writer {
  std::uint64_t address;
  const char* name;
};
constexpr std::size_t kWriters = 512;
constexpr std::size_t kSmallBytes = 16;
std::array<Writer, kWriters> writers{};
std::size_t next_writer = 0;

// Kept for ever: operations are few, and the caller's names may go. The same name has the same address.
const char* keep_name(const char* name) {
  static auto* const names = new std::unordered_set<std::string>;
  return names->emplace(name).first->c_str();
}

void note_writer(std::uint64_t address, const char* name) {
  writers[next_writer++ % kWriters] = {address, keep_name(name)};
}

// --- the table ---------------------------------------------------------------------------------------------------

std::uint64_t number(const void* pointer) { return reinterpret_cast<std::uint64_t>(pointer); }

void begin_operation(const char* name) { operations().push_back({name, 0, 0, {}}); }

std::uint64_t end_operation() {
  const std::uint64_t launches = operations().back().launches;
  operations().pop_back();
  return launches;
}

bool is_on_device(const void* address) {
  const Simulator* state = sim_if_made();
  return state && state->addresses.contains(number(address));
}

bool read_known(const void* address, std::size_t size, void* to) {
  const Lock lock = lock_sim();
  return read_known_device(number(address), size, static_cast<char*>(to));
}

void write_known(void* address, std::size_t size, const void* from) {
  const Lock lock = lock_sim();
  write_device(number(address), static_cast<const char*>(from), size);
}

void forget(void* address, std::size_t size, const char* name) {
  const Lock lock = lock_sim();
  if (!sim().config.keep_contents) forget_device(number(address), size);
  if (size <= kSmallBytes) note_writer(number(address), name);
}

bool watching() { return uses_are_kept(); }

void use(const void* address, std::size_t size, bool write) {
  const Operation& operation = operations().back();
  if (operation.launches == 0) return;
  const Lock lock = lock_sim();
  Stream* stream = sim().streams.find(operation.stream);
  if (stream) note_use(*stream, number(address), size, write, keep_name(operation.name));
}

void give_answer(std::int64_t value) {
  if (!operations().empty()) operations().back().answer = value;
}

constexpr SimgpuOperations kTable{begin_operation, end_operation, is_on_device, read_known, write_known,
                                  forget,          watching,      use,          give_answer};

// --- loading -----------------------------------------------------------------------------------------------------

// The file of the torch library in this process; empty where there is none yet.
bool find_torch(char (&path)[PATH_MAX]) {
  void* torch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  if (!torch) return false;
  const bool found = dlinfo(torch, RTLD_DI_ORIGIN, path) == 0;
  dlclose(torch);
  return found;
}

void load_values(const char* file, const char* torch_folder) {
  void* library = dlopen(file, RTLD_LAZY | RTLD_LOCAL);
  if (!library) {
    say("%s cannot be loaded, so computed values are zeros: %s", file, dlerror());
    return;
  }
  const auto* built_for = static_cast<const char*>(dlsym(library, kSimvaluesTorch));
  const auto attach = reinterpret_cast<void (*)(const SimgpuOperations*)>(dlsym(library, kSimvaluesAttach));
  char wanted[PATH_MAX], present[PATH_MAX];
  // A child may run another Python with another torch.
  if (!built_for || !attach || !realpath(built_for, wanted) || !realpath(torch_folder, present) ||
      std::strcmp(wanted, present) != 0) {
    dlclose(library);
    return;
  }
  attach(&kTable);
}

}  // namespace

void attach_values() {
  static std::atomic<bool> done{false};
  const char* file = std::getenv("POOLALLOC_SIM_VALUES");
  if (done || !file || !*file) return;
  char torch_folder[PATH_MAX];
  if (!find_torch(torch_folder) || done.exchange(true)) return;
  load_values(file, torch_folder);
}

void note_launch(Stream& stream) {
  if (operations().empty()) {
    ++stream.device->forgettings;
  } else {
    ++operations().back().launches;
    operations().back().stream = stream.handle;
  }
}

bool reads_own_results(const std::int64_t** answer) {
  if (operations().empty() || operations().back().launches == 0 || sim().config.keep_contents) return false;
  const Operation& operation = operations().back();
  *answer = operation.answer ? &*operation.answer : nullptr;
  return true;
}

const char* writer_of(std::uint64_t address) {
  for (std::size_t back = 1; back <= kWriters && back <= next_writer; ++back) {
    const Writer& writer = writers[(next_writer - back) % kWriters];
    if (writer.address == address) return writer.name;
  }
  return nullptr;
}

}  // namespace poolalloc::simgpu
