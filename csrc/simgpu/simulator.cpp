// Making of the one state, contexts of threads, and what happens at fork; see simulator.h.
#include "simgpu/simulator.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "simgpu/capture.h"
#include "simgpu/simgpu.h"

namespace poolalloc::simgpu {
namespace {

std::atomic<Simulator*> the_simulator{nullptr};

constexpr int kDriverVersion = 13020;
// Contexts are numbers of their own kind, like the handles of handle_table.h.
constexpr std::uint64_t kContextTag = 0x5c0000000000;

void before_fork() {
  if (Simulator* state = sim_if_made()) state->mutex.lock();
}

void after_fork_in_parent() {
  if (Simulator* state = sim_if_made()) state->mutex.unlock();
}

// CUDA does not survive fork: a child may use it only if the parent never made a context.
void after_fork_in_child() {
  Simulator* state = sim_if_made();
  if (!state) return;
  const bool used = std::any_of(state->devices.begin(), state->devices.end(),
                                [](const auto& device) { return device->context_active.load(); });
  if (used) state->lost_by_fork = true;
  if (state->card) state->card->leave_to_parent();
  state->mutex.unlock();
}

// As the driver does: what is destroyed after this, being older, finds it shut down.
void shut_driver_down() {
  sim().shut_down = true;
  if (!sim().card) return;
  // A signal handler may end the process in the middle of a call. The kernel then gives back what it used.
  if (const Lock lock(sim().mutex, std::try_to_lock); lock) sim().card->leave();
}

}  // namespace

Simulator::Simulator(Config read) : config(std::move(read)) {
  if (config.devices > 0 && !config.shared.empty()) {
    card = std::make_unique<SharedCard>(config);
    if (!card->join()) {
      card.reset();
      config.devices = 0;
      config.visible.clear();
    }
  }
  for (const int physical_index : config.visible) {
    auto device = std::make_unique<Device>();
    device->index = static_cast<int>(devices.size());
    device->physical_index = physical_index;
    device->capacity = config.memory_bytes;
    devices.push_back(std::move(device));
  }
}

Simulator& sim() {
  if (Simulator* made = sim_if_made()) return *made;
  static Simulator* const created = [] {
    auto* state = new Simulator(read_config());
    the_simulator.store(state, std::memory_order_release);
    // Streams and pools point at their devices through the state, so they come last.
    for (auto& device : state->devices) {
      device->legacy = create_stream(*device, abi::kStreamDefault, 0);
      device->legacy->legacy = true;
      const auto [handle, pool] = state->pools.create(*device);
      pool->set_handle(handle);
      device->default_pool = handle;
      device->current_pool = device->default_pool;
    }
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    std::atexit(shut_driver_down);
    return state;
  }();
  return *created;
}

Simulator* sim_if_made() { return the_simulator.load(std::memory_order_acquire); }

ThreadState& thread_state() {
  thread_local ThreadState state;
  return state;
}

bool connected(int device, int peer) {
  const auto number = [](int index) { return sim().devices[static_cast<std::size_t>(index)]->physical_index; };
  return device != peer && (sim().config.peers[number(device)] >> number(peer) & 1) != 0;
}

void* context_of(int device) {
  return device_exists(device)
             ? reinterpret_cast<void*>(kContextTag + (static_cast<std::uint64_t>(device) + 1) * 0x1000)
             : nullptr;
}

int device_of_context(const void* context) {
  const std::uint64_t value = reinterpret_cast<std::uint64_t>(context) - kContextTag;
  if (value % 0x1000 != 0 || value == 0 || value / 0x1000 > sim().devices.size()) return -1;
  return static_cast<int>(value / 0x1000) - 1;
}

void use_context() {
  thread_state().context_current = true;
  current_device().context_active = true;
}

Error availability() {
  if (sim().devices.empty()) return kNoDevice;
  if (sim().lost_by_fork.load(std::memory_order_relaxed)) return kNotInitialized;
  if (sim().shut_down.load(std::memory_order_relaxed)) return kDeinitialized;
  if (sim().lost.load(std::memory_order_relaxed)) return kIllegalAddress;
  return kSuccess;
}

int runtime_version() {
  // The real library is loaded too, under this one; it knows its version without a driver.
  static const int version = [] {
    for (int major = 13; major >= 12; --major) {
      char name[32];
      std::snprintf(name, sizeof name, "libcudart.so.%d", major);
      void* library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY);
      if (!library) continue;
      int found = major * 1000;
      using GetVersion = int (*)(int*);
      if (auto get = reinterpret_cast<GetVersion>(dlsym(library, "cudaRuntimeGetVersion"))) get(&found);
      dlclose(library);
      return found;
    }
    return 13000;
  }();
  return version;
}

int driver_version() { return std::max(kDriverVersion, runtime_version()); }

}  // namespace poolalloc::simgpu

void simgpu_lose_devices(void) { poolalloc::simgpu::sim().lost = true; }
