// Finds the CUDA driver: one dlopen, then every function through cuGetProcAddress.
#include "driver/cuda_api.h"

#include <dlfcn.h>

namespace poolalloc::cuda {
namespace {

// The interface of CUDA 11.3, the first with cuGetProcAddress; later drivers keep answering it.
constexpr int kInterfaceVersion = 11030;

using GetProcAddress = Result (*)(const char* symbol, void** function, int version, std::uint64_t flags);
using GetProcAddressV2 = Result (*)(const char* symbol, void** function, int version, std::uint64_t flags, int* status);

class Resolver {
 public:
  explicit Resolver(void* library)
      : second_(reinterpret_cast<GetProcAddressV2>(dlsym(library, "cuGetProcAddress_v2"))),
        first_(reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress"))) {}

  bool usable() const { return second_ != nullptr || first_ != nullptr; }
  void* find(const char* symbol) const {
    void* function = nullptr;
    Result result = second_ != nullptr
                        ? second_(symbol, &function, kInterfaceVersion, kProcAddressLegacyStream, nullptr)
                        : first_(symbol, &function, kInterfaceVersion, kProcAddressLegacyStream);
    return result == kSuccess ? function : nullptr;
  }

 private:
  GetProcAddressV2 second_;
  GetProcAddress first_;
};

std::string describe_with(const Api& api, Result result) {
  const char* name = nullptr;
  const char* text = nullptr;
  if (api.GetErrorName != nullptr) api.GetErrorName(result, &name);
  if (api.GetErrorString != nullptr) api.GetErrorString(result, &text);
  return std::string(name != nullptr ? name : "unknown CUDA error") + " (" + std::to_string(result) + ")" +
         (text != nullptr ? ": " + std::string(text) : "");
}

Api load() {
  Api api;
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    api.problem = "there is no CUDA driver: " + std::string(reason != nullptr ? reason : "libcuda.so.1 was not found");
    return api;
  }
  Resolver resolver(library);
  if (!resolver.usable()) {
    api.problem = "the CUDA driver is older than CUDA 11.3: it has no cuGetProcAddress";
    return api;
  }
#define X(name, parameters)                                                                   \
  api.name = reinterpret_cast<decltype(api.name)>(resolver.find("cu" #name));                 \
  if (api.name == nullptr) {                                                                  \
    api.problem = "the CUDA driver does not have cu" #name " (CUDA 11.3 or later is needed)"; \
    return api;                                                                               \
  }
  POOLALLOC_CUDA_FUNCTIONS(X)
#undef X
  Result result = api.Init(0);
  if (result == kSuccess) result = api.DeviceGetCount(&api.devices);
  if (result != kSuccess)
    api.problem = "the CUDA driver does not start: " + describe_with(api, result);
  else if (api.devices == 0)
    api.problem = "the CUDA driver finds no device";
  return api;
}

}  // namespace

const Api& api() {
  static const Api* loaded = new Api(load());  // never destroyed: memory may be freed after static destructors
  return *loaded;
}

std::string describe(Result result) { return describe_with(api(), result); }

}  // namespace poolalloc::cuda
