// Registration of compiled code, its variables, and libraries loaded at run time.
//
// Kernels do nothing, so all that is kept of one is its name, for messages. Torch registers tens of thousands of them
// when it is loaded. Variables are kept: programs copy to them by symbol. Their memory is a module's, not counted as
// used.
#include "simgpu/module.h"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "simgpu/cuda_abi.h"
#include "simgpu/operations.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace poolalloc::simgpu {
namespace {

// Filled while libraries load, before any call: making it must not make the simulator.
struct Variables {
  std::mutex mutex;
  std::map<const void*, std::size_t> sizes;
};
Variables& variables() {
  static auto* const made = new Variables;
  return *made;
}

std::map<std::pair<const void*, int>, std::uint64_t>& symbol_addresses() {
  static auto* const made = new std::map<std::pair<const void*, int>, std::uint64_t>;
  return *made;
}

std::size_t symbol_size(const void* symbol) {
  const std::lock_guard guard(variables().mutex);
  const auto found = variables().sizes.find(symbol);
  return found == variables().sizes.end() ? 0 : found->second;
}

struct KernelNames {
  std::mutex mutex;
  std::unordered_map<const void*, const char*> names;
};
KernelNames& kernel_names() {
  static auto* const made = new KernelNames;
  return *made;
}

void keep_name(const void* kernel, const char* name) {
  const std::lock_guard guard(kernel_names().mutex);
  kernel_names().names[kernel] = name;
}

// What stands for a fat binary, a library or a module: distinct, never dereferenced.
void* next_module() {
  static std::atomic<std::uint64_t> next{0x5d0000000000};
  return reinterpret_cast<void*>(next.fetch_add(0x10));
}

}  // namespace

const char* kernel_name(const void* kernel) {
  const std::lock_guard guard(kernel_names().mutex);
  const auto found = kernel_names().names.find(kernel);
  return found == kernel_names().names.end() ? nullptr : found->second;
}

char* symbol_address(const void* symbol) {
  const std::size_t size = symbol_size(symbol);
  if (size == 0) return nullptr;
  Device& device = current_device();
  std::uint64_t& address = symbol_addresses()[{symbol, device.index}];
  if (address == 0) {
    Region* region = sim().addresses.create(RegionKind::kSymbol, size, kGranularity, device.index);
    Extent* extent = region ? create_extent(device, round_up(size, kGranularity), false) : nullptr;
    if (!extent) return nullptr;
    Mapping& mapping = map_extent(*region, region->base, *extent, extent->size, 0);
    release_extent(*extent);
    mapping.access[static_cast<std::size_t>(device.index)] = abi::kAccessReadWrite;
    address = region->base;
  }
  return reinterpret_cast<char*>(address);
}

}  // namespace poolalloc::simgpu

// --- registration ------------------------------------------------------------------------------------------------

SIMGPU_API void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(next_module()); }
// The library that is being loaded comes with its dependencies, torch among them.
SIMGPU_API void __cudaRegisterFatBinaryEnd(void**) { attach_values(); }
SIMGPU_API void __cudaUnregisterFatBinary(void**) {}
SIMGPU_API char __cudaInitModule(void**) { return 1; }
SIMGPU_API void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, void*, void*, void*,
                                       void*, int*) {
  keep_name(kernel, name);
}
SIMGPU_API void __cudaRegisterVar(void**, char* host_variable, char*, const char*, int, std::size_t size, int, int) {
  const std::lock_guard guard(variables().mutex);
  variables().sizes[host_variable] = size;
}
SIMGPU_API void __cudaRegisterHostVar(void**, const char*, char*, std::size_t) {}
SIMGPU_API void __cudaRegisterUnifiedTable(void**, void*) {}

// A __managed__ variable is a pointer to managed memory, which the host may follow at once.
SIMGPU_API void __cudaRegisterManagedVar(void**, void** host_variable, char*, const char*, int, std::size_t size, int,
                                         int) {
  const Lock lock = lock_sim();
  *host_variable = sim().host_memory.allocate(HostKind::kManaged, size, 0, 0);
}

SIMGPU_API int __cudaGetKernel(void** kernel, const void* function) {
  *kernel = const_cast<void*>(function);
  return kSuccess;
}

SIMGPU_API int cudaGetKernel(void** kernel, const void* function) {
  return runtime_call([&] {
    *kernel = const_cast<void*>(function);
    return kSuccess;
  });
}

SIMGPU_API int cudaGetFuncBySymbol(void** kernel, const void* function) {
  return runtime_call([&] {
    *kernel = const_cast<void*>(function);
    return kSuccess;
  });
}

SIMGPU_API int cudaGetSymbolAddress(void** address, const void* symbol) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    use_context();
    *address = symbol_address(symbol);
    return *address ? kSuccess : kInvalidSymbol;
  });
}

SIMGPU_API int cudaGetSymbolSize(std::size_t* size, const void* symbol) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    *size = symbol_size(symbol);
    return *size ? kSuccess : kInvalidSymbol;
  });
}

// --- libraries and modules loaded at run time: code is accepted unread, and every kernel asked for is found ----------

namespace {

Error load(void** module, const void* code) {
  if (!module || !code) return kInvalidValue;
  *module = next_module();
  return kSuccess;
}

Error find_kernel(void** kernel, const char* name) {
  if (!kernel || !name) return kInvalidValue;
  *kernel = next_module();
  keep_name(*kernel, strdup(name));  // the caller's may go
  return kSuccess;
}

}  // namespace

SIMGPU_API int cudaLibraryLoadData(void** library, const void* code, int*, void**, unsigned, int*, void**, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return load(library, code); });
}

SIMGPU_API int cudaLibraryLoadFromFile(void** library, const char* file, int*, void**, unsigned, int*, void**,
                                       unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return load(library, file); });
}

SIMGPU_API int cudaLibraryUnload(void*) {
  SIM_COUNT_CALL();
  return runtime_call([] { return kSuccess; });
}

SIMGPU_API int cudaLibraryGetKernel(void** kernel, void*, const char* name) {
  SIM_COUNT_CALL();
  return runtime_call([&] { return find_kernel(kernel, name); });
}

SIMGPU_API int cuModuleLoad(void** module, const char* file) {
  SIM_COUNT_CALL();
  return context_call([&] { return load(module, file); });
}

SIMGPU_API int cuModuleLoadData(void** module, const void* code) {
  SIM_COUNT_CALL();
  return context_call([&] { return load(module, code); });
}

SIMGPU_API int cuModuleLoadDataEx(void** module, const void* code, unsigned, int*, void**) {
  SIM_COUNT_CALL();
  return context_call([&] { return load(module, code); });
}

SIMGPU_API int cuModuleUnload(void*) {
  SIM_COUNT_CALL();
  return context_call([] { return kSuccess; });
}

SIMGPU_API int cuModuleGetFunction(void** function, void*, const char* name) {
  SIM_COUNT_CALL();
  return context_call([&] { return find_kernel(function, name); });
}

SIMGPU_API int cuLibraryLoadData(void** library, const void* code, int*, void**, unsigned, int*, void**, unsigned) {
  SIM_COUNT_CALL();
  return driver_call([&] { return load(library, code); });
}

SIMGPU_API int cuLibraryUnload(void*) {
  SIM_COUNT_CALL();
  return driver_call([] { return kSuccess; });
}

SIMGPU_API int cuLibraryGetKernel(void** kernel, void*, const char* name) {
  SIM_COUNT_CALL();
  return driver_call([&] { return find_kernel(kernel, name); });
}

SIMGPU_API int cuKernelGetFunction(void** function, void* kernel) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    *function = kernel;
    return kSuccess;
  });
}

// Linking of compiled code: the result is a token, like every module.
SIMGPU_API int cuLinkCreate_v2(unsigned, int*, void**, void** state) {
  SIM_COUNT_CALL();
  return context_call([&] { return load(state, state); });
}
SIMGPU_API int cuLinkAddData_v2(void*, int, void*, std::size_t, const char*, unsigned, int*, void**) {
  SIM_COUNT_CALL();
  return context_call([] { return kSuccess; });
}
SIMGPU_API int cuLinkComplete(void*, void** code, std::size_t* size) {
  SIM_COUNT_CALL();
  return context_call([&] {
    static char token[16] = "simgpu";
    *code = token;
    *size = sizeof token;
    return kSuccess;
  });
}
SIMGPU_API int cuLinkDestroy(void*) {
  SIM_COUNT_CALL();
  return context_call([] { return kSuccess; });
}
