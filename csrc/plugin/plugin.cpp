// The process-wide allocator behind the C ABI: made once, never destroyed, closed in a child of fork().
#include "plugin/plugin.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <type_traits>

#include "driver/cuda_driver.h"

namespace poolalloc {
namespace {

// Constant-initialized and trivially destructible: usable before main and after static destructors.
struct Plugin {
  // What malloc and free read: null until the first use, and again in a child of fork() that must not touch the device.
  std::atomic<Allocator*> open{nullptr};
  std::atomic<bool> forked{false};

  std::mutex mutex;                  // guards what follows; held across fork(), never during a call of the allocator
  const Options* options = nullptr;  // once fixed
  const Plan* plan = nullptr;        // fixed with them
  Allocator* allocator = nullptr;
  bool watches_fork = false;

#define X(setter, function) std::atomic<std::uint64_t> function{0};
  POOLALLOC_TORCH_HOOKS(X)
#undef X
  std::atomic<std::uint64_t> failures{0};
  std::mutex failure_mutex;
  std::string* last_failure = nullptr;
};
static_assert(std::is_trivially_destructible_v<Plugin>);

constinit Plugin plugin;

// A driver that was never used is fresh in the child too; one that was is unusable there, and so may its locks be.
void close_in_child() {
  if (plugin.open.exchange(nullptr) != nullptr) plugin.forked = true;
  plugin.mutex.unlock();
}

bool same(const Options& a, const Options& b) {
#define OPTION(name, type, default_value, minimum, maximum, unit, help) \
  if (a.name != b.name) return false;
#include "core/options/options.def"
#undef OPTION
  return true;
}

Options options_of(const char* conf) {
  Options options;
  if (conf != nullptr) parse_options(options, conf);
  check_options(options);
  return options;
}

// From the first use to the end of the process; the file stays as it is, without what Python would make of it.
void record(Allocator& allocator, std::string path) {
  if (const std::size_t at = path.find("%p"); at != std::string::npos) path.replace(at, 2, std::to_string(getpid()));
  allocator.start_log(path, "{\"bin_limit\": " + std::to_string(allocator.options().bin_limit) + "}");
  std::atexit([] {
    if (Allocator* here = plugin.open.load(); here != nullptr && here->recording()) try {
        here->stop_log();
      } catch (const UsageError& error) {
        std::fprintf(stderr, "poolalloc: %s\n", error.what());
      }
  });
}

Allocator& make_allocator() {
  if (plugin.allocator == nullptr) {
    if (plugin.options == nullptr) plugin.options = new Options(options_of(std::getenv("POOLALLOC_CONF")));
    auto allocator = std::make_unique<Allocator>(*new CudaDriver, *plugin.options, plugin.plan);
    if (!plugin.options->record.empty()) record(*allocator, plugin.options->record);
    plugin.allocator = allocator.release();
  }
  return *plugin.allocator;
}

[[gnu::noinline]] Allocator& open_allocator() {
  const std::lock_guard guard(plugin.mutex);
  if (plugin.forked)
    throw UsageError(
        "this process is a child of fork(), and its parent had already used CUDA; neither torch nor poolalloc can use "
        "CUDA here. Start processes with the \"spawn\" or \"forkserver\" method, or fork before CUDA is used.");
  Allocator& allocator = make_allocator();
  if (!plugin.watches_fork) pthread_atfork([] { plugin.mutex.lock(); }, [] { plugin.mutex.unlock(); }, close_in_child);
  plugin.watches_fork = true;
  plugin.open.store(&allocator, std::memory_order_release);
  return allocator;
}

inline Allocator& allocator() {
  Allocator* open = plugin.open.load(std::memory_order_acquire);
  return open != nullptr ? *open : open_allocator();
}

// For calls that have nothing to do before the first use, and must not touch the device in a child of fork().
inline Allocator* allocator_if_open() { return plugin.open.load(std::memory_order_acquire); }

inline Address address_of(const void* pointer) { return reinterpret_cast<Address>(pointer); }
inline StreamId id_of(CudaStream stream) { return reinterpret_cast<StreamId>(stream); }
inline PoolId id_of(TorchPoolId pool) { return {pool.first, pool.second}; }

}  // namespace

void report_failure(const char* function, const char* what) noexcept {
  if (plugin.failures.fetch_add(1) == 0)
    std::fprintf(stderr, "poolalloc: %s: %s (further failures are counted, not shown)\n", function, what);
  try {
    const std::lock_guard guard(plugin.failure_mutex);
    if (plugin.last_failure == nullptr) plugin.last_failure = new std::string;
    *plugin.last_failure = std::string(function) + ": " + what;
  } catch (...) {  // no memory for the text: the count has it
  }
}

void configure_plugin(const Options& options, const Plan* plan) {
  check_options(options);
  if (plan != nullptr) check_plan(*plan);
  const std::lock_guard guard(plugin.mutex);
  if (plugin.options == nullptr) {
    plugin.options = new Options(options);
    if (plan != nullptr) plugin.plan = new Plan(*plan);
  }
  if (!same(*plugin.options, options))
    throw ConfigError("poolalloc is already configured in this process, with other options; configure it once");
  if (plan != nullptr && (plugin.plan == nullptr || !(*plugin.plan == *plan)))
    throw ConfigError("poolalloc is already configured in this process, without this plan; configure it once");
}

Allocator& plugin_allocator() { return allocator(); }

void record_use(void* pointer, Stream stream) {
  Allocator* allocator = allocator_if_open();
  if (allocator == nullptr) return;
  if (const Address base = allocator->base_allocation(address_of(pointer)); base != 0)
    allocator->record_stream(base, stream);
}

OomCallbacks& plugin_oom_callbacks() {
  const std::lock_guard guard(plugin.mutex);
  return make_allocator().oom_callbacks();
}

PluginState plugin_state() {
  PluginState state;
  {
    const std::lock_guard guard(plugin.mutex);
    state.configured = plugin.options != nullptr;
  }
  state.used = plugin.open.load() != nullptr;
  state.forked = plugin.forked;
#define X(setter, function) state.function = plugin.function;
  POOLALLOC_TORCH_HOOKS(X)
#undef X
  state.failures = plugin.failures;
  const std::lock_guard guard(plugin.failure_mutex);
  if (plugin.last_failure != nullptr) state.last_failure = *plugin.last_failure;
  return state;
}

}  // namespace poolalloc

using poolalloc::CudaStream;
using poolalloc::TorchPoolId;
using poolalloc::TorchStreamFilter;

[[gnu::hot]] void* poolalloc_malloc(std::size_t bytes, int device, CudaStream stream) {
  return reinterpret_cast<void*>(poolalloc::allocator().allocate(bytes, device, poolalloc::id_of(stream)));
}

[[gnu::hot]] void poolalloc_free(void* pointer, std::size_t, int, CudaStream) {
  poolalloc::Allocator* allocator = poolalloc::allocator_if_open();
  if (pointer == nullptr) return;
  try {
    if (allocator != nullptr)
      allocator->free(poolalloc::address_of(pointer));
    else if (!poolalloc::plugin.forked)
      throw poolalloc::UsageError("no memory has been handed out yet");
  } catch (const std::exception& error) {
    poolalloc::report_failure("free", error.what());
  }
}

const char* poolalloc_configure(const char* conf) {
  static thread_local std::string problem;
  try {
    poolalloc::configure_plugin(poolalloc::options_of(conf));
    return nullptr;
  } catch (const std::exception& error) {
    problem = error.what();
    return problem.c_str();
  }
}

void poolalloc_init(int device_count) {
  ++poolalloc::plugin.poolalloc_init;
  if (device_count > 0) poolalloc::allocator();
}

void poolalloc_empty_cache() {
  ++poolalloc::plugin.poolalloc_empty_cache;
  if (auto* allocator = poolalloc::allocator_if_open()) allocator->empty_cache();
}

void poolalloc_set_memory_fraction(double fraction, int device) {
  ++poolalloc::plugin.poolalloc_set_memory_fraction;
  poolalloc::allocator().set_memory_fraction(fraction, device);
}

void* poolalloc_base_allocation(void* pointer, std::size_t* bytes) {
  ++poolalloc::plugin.poolalloc_base_allocation;
  poolalloc::Bytes rounded = 0;
  auto* allocator = poolalloc::allocator_if_open();
  const poolalloc::Address base =
      allocator == nullptr ? 0 : allocator->base_allocation(poolalloc::address_of(pointer), &rounded);
  if (base == 0) throw poolalloc::UsageError("this address lies in no memory that poolalloc handed out");
  if (bytes != nullptr) *bytes = rounded;
  return reinterpret_cast<void*>(base);
}

void poolalloc_record_stream(void* pointer, CudaStream stream) {
  ++poolalloc::plugin.poolalloc_record_stream;
  auto* allocator = poolalloc::allocator_if_open();
  if (allocator == nullptr) return;
  const auto block = allocator->block(poolalloc::address_of(pointer));
  if (!block) return;
  const poolalloc::StreamId id = poolalloc::id_of(stream);
  poolalloc::record_use(pointer, {allocator->device_of(id).value_or(block->device), id});
}

void poolalloc_begin_allocate_to_pool(int device, TorchPoolId pool, TorchStreamFilter filter) {
  ++poolalloc::plugin.poolalloc_begin_allocate_to_pool;
  poolalloc::allocator().begin_allocate_to_pool(
      device, poolalloc::id_of(pool),
      [filter = std::move(filter)](poolalloc::StreamId stream) { return filter(reinterpret_cast<CudaStream>(stream)); },
      true);
}

void poolalloc_end_allocate_to_pool(int device, TorchPoolId pool) {
  ++poolalloc::plugin.poolalloc_end_allocate_to_pool;
  poolalloc::allocator().end_allocate_to_pool(device, poolalloc::id_of(pool));
}

void poolalloc_release_pool(int device, TorchPoolId pool) {
  ++poolalloc::plugin.poolalloc_release_pool;
  auto* allocator = poolalloc::allocator_if_open();
  if (allocator == nullptr) return;
  try {
    allocator->release_pool(device, poolalloc::id_of(pool));
  } catch (const std::exception& error) {
    poolalloc::report_failure("release_pool", error.what());
  }
}
