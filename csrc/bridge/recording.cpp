// torch's calls about the history of memory, handed on to History.
#include <c10/cuda/CUDAFunctions.h>

#include "bridge/torch_allocator.h"
#include "plugin/plugin.h"

namespace poolalloc::bridge {

bool TorchAllocator::isHistoryEnabled() { return History::instance().recording(); }

void TorchAllocator::recordHistory(bool enabled, CreateContextFn recorder, std::size_t max_entries, RecordContext when,
                                   bool clear, const std::vector<std::string>& skip_actions) {
  History::instance().record(enabled, recorder, max_entries, when, clear, skip_actions);
}

void TorchAllocator::attachAllocatorTraceTracker(AllocatorTraceTracker tracker) {
  History::instance().follow(std::move(tracker));
}

void TorchAllocator::recordAnnotation(const std::vector<std::pair<std::string, std::string>>& pairs) {
  if (History::instance().recording()) History::instance().annotation(c10::cuda::current_device(), pairs);
}

void TorchAllocator::pushCompileContext(std::string& name) { History::push_compile_context(name); }

void TorchAllocator::popCompileContext() { History::pop_compile_context(); }

void TorchAllocator::setUserMetadata(const std::string& text) { History::set_metadata(text); }

std::string TorchAllocator::getUserMetadata() { return History::metadata(); }

void TorchAllocator::annotateMemory(const void* memory, const std::string& text) {
  if (!History::on()) return;
  const History::Cause cause(RecordContext::ALLOC);
  History::instance().annotated(memory, text);
}

std::shared_ptr<c10::GatheredContext> TorchAllocator::getContextForPointer(const void* memory) {
  const auto block = plugin_allocator().block(address_of(memory));
  if (!block || block->address != address_of(memory)) return nullptr;
  return History::instance().context_of(static_cast<DeviceIndex>(block->device), block->address);
}

}  // namespace poolalloc::bridge
