// The one state of the simulated machine: devices, memory, streams, events, graphs; and the frame of every API call.
//
// It is made at the first call and never destroyed, because torch calls CUDA from static destructors. One mutex guards
// all of it: a call is short, and simulated calls are not what a measurement should be about. Functions that take the
// lock themselves say so; everything else expects it held. Host functions and user callbacks run with no lock held.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "simgpu/addresses.h"
#include "simgpu/config.h"
#include "simgpu/driver_work.h"
#include "simgpu/errors.h"
#include "simgpu/graph.h"
#include "simgpu/handle_table.h"
#include "simgpu/host_memory.h"
#include "simgpu/physical.h"
#include "simgpu/pool.h"
#include "simgpu/shared_card.h"
#include "simgpu/stream.h"

namespace poolalloc::simgpu {

struct Device {
  int index = 0;
  int physical_index = 0;  // its number before CUDA_VISIBLE_DEVICES
  std::uint64_t capacity = 0;
  std::uint64_t used = 0;  // used = sum of the sizes of this process's counted extents on this device
  std::uint64_t peak = 0;  // peak >= used
  std::uint64_t launches = 0;
  std::uint64_t forgettings = 0;      // times that everything on it became unknown
  const void* last_kernel = nullptr;  // launched here
  std::atomic<bool> context_active{false};
  unsigned context_references = 0;  // cuDevicePrimaryCtxRetain less Release
  unsigned context_flags = 0;
  std::uint64_t peers = 0;  // bit by device: peer access enabled
  std::unordered_map<int, std::uint64_t> limits;
  Stream* legacy = nullptr;
  std::uint64_t default_pool = 0;  // handles
  std::uint64_t current_pool = 0;
  std::uint64_t graph_memory_used = 0;
  std::uint64_t graph_memory_high = 0;
};

struct Simulator {
  explicit Simulator(Config read);

  Config config;
  std::unique_ptr<SharedCard> card;  // null: other processes have cards of their own
  std::mutex mutex;
  std::vector<std::unique_ptr<Device>> devices;
  AddressSpace addresses;
  HostMemory host_memory;
  HandleTable<Stream, HandleKind::kStream> streams;
  HandleTable<Event, HandleKind::kEvent> events;
  HandleTable<Graph, HandleKind::kGraph> graphs;
  HandleTable<GraphNode, HandleKind::kNode> nodes;
  HandleTable<GraphExec, HandleKind::kExec> execs;
  HandleTable<UserObject, HandleKind::kUserObject> user_objects;
  HandleTable<Pool, HandleKind::kPool> pools;
  HandleTable<Extent*, HandleKind::kAllocation> allocations;
  std::vector<std::shared_ptr<Capture>> captures;  // in progress or invalidated, not yet ended
  std::uint64_t last_extent_id = 0;
  std::uint64_t last_stream_id = 0;
  std::uint64_t last_capture_id = 0;
  std::uint64_t resident_bytes = 0;  // of all contents on the host
  bool said_contents_dropped = false;
  bool said_waiting = false;
  std::atomic<bool> driver_initialized{false};
  std::atomic<bool> lost_by_fork{false};  // a child of a process that had used a device cannot use it
  std::atomic<bool> shut_down{false};     // the process is ending, and the driver has gone before it
  std::atomic<bool> lost{false};          // some work touched memory that is not its own: nothing works any more
};

// The state, made at the first call.
Simulator& sim();
// The same if it exists, else null: reports and fork handlers must not make it.
Simulator* sim_if_made();

using Lock = std::unique_lock<std::mutex>;
inline Lock lock_sim() { return Lock(sim().mutex); }

// What CUDA keeps for each thread.
struct ThreadState {
  int device = 0;
  bool context_current = false;
  int last_error = kSuccess;
  int capture_mode = 0;  // abi::CaptureMode
  int context_stack[16] = {};
  int context_depth = 0;
  std::uint64_t per_thread_streams[kMaxDevices] = {};
  // For the warning about a program that waits for a value (copy_work.cpp).
  std::uint64_t last_read_address = 0;
  std::uint64_t last_read_launches = 0;
  const char* last_read_writer = nullptr;  // as writer_of returned it
  unsigned repeated_reads = 0;
  unsigned questions = 0;  // reads of a boolean
  std::int64_t first_question_ns = 0;
};
ThreadState& thread_state();

inline Device& current_device() { return *sim().devices[static_cast<std::size_t>(thread_state().device)]; }
inline bool device_exists(int device) { return device >= 0 && device < static_cast<int>(sim().devices.size()); }

// Whether work on one device can be given access to memory of the other.
bool connected(int device, int peer);

// The primary context of a device as a handle, and back; null and -1 where there is none.
void* context_of(int device);
int device_of_context(const void* context);

// Makes a context current on this thread, as the first runtime call that needs one does.
void use_context();

// Whether a device can be used at all.
Error availability();

// Frame of a runtime call: availability, then the call; an error becomes the thread's last error. The runtime
// initializes the driver for itself.
template <class F>
int runtime_call(F&& call) {
  Error error = availability();
  if (error == kSuccess) sim().driver_initialized.store(true, std::memory_order_relaxed);
  if (error == kSuccess) error = call();
  if (error != kSuccess) thread_state().last_error = error;
  take_owed_time();
  return error;
}

// Frame of a driver call: cuInit must have come first.
template <class F>
int driver_call(F&& call) {
  if (!sim().driver_initialized.load(std::memory_order_relaxed)) return kNotInitialized;
  Error error = availability();
  if (error == kSuccess) error = call();
  take_owed_time();
  return error;
}

// The same for a driver call that needs a current context.
template <class F>
int context_call(F&& call) {
  return driver_call([&] { return thread_state().context_current ? call() : kInvalidContext; });
}

// Version of the runtime that the program was built against (13020), and of the simulated driver.
int runtime_version();
int driver_version();

}  // namespace poolalloc::simgpu
