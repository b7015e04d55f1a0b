// The bridge's own door: the C function that poolalloc/_internal/bridge.py calls.
#include <c10/core/Allocator.h>

#include <memory>
#include <string>

#include "bridge/settings.h"
#include "bridge/torch_allocator.h"

using poolalloc::bridge::Caching;
using poolalloc::bridge::TorchAllocator;

extern "C" {

// Makes poolalloc the allocator of torch and of torch.accelerator. Null if that went well, else why not; the text lives
// as long as the process. `warn` is called where a setting of torch's has no effect (settings.h); it may be null.
POOLALLOC_API const char* poolalloc_bridge_install(poolalloc::bridge::Warn warn) {
  try {
    // One reference is never given back: torch drops its own at exit, when tensors may still be alive.
    static auto* const allocator = new std::shared_ptr<Caching>(std::make_shared<TorchAllocator>());
    torch::cuda::CUDAPluggableAllocator::changeCurrentAllocator(*allocator);
    // torch.accelerator asks there. What came with a higher priority stays, and torch's own differs between versions.
    for (int priority = 0; priority < 256 && c10::GetAllocator(c10::kCUDA) != allocator->get(); ++priority)
      c10::SetAllocator(c10::kCUDA, allocator->get(), static_cast<std::uint8_t>(priority));
    poolalloc::bridge::follow_settings(warn);
    poolalloc::bridge::follow_regions();
    return nullptr;
  } catch (const std::exception& error) {
    static auto* const text = new std::string(error.what());
    return text->c_str();
  }
}
// What poolalloc makes of each of torch's settings, for tests (settings.h). The text lives as long as the process.
POOLALLOC_API const char* poolalloc_bridge_settings() {
  static auto* const text = new std::string(poolalloc::bridge::describe_settings());
  return text->c_str();
}
}
