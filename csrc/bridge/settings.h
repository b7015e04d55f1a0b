// torch's own settings of its allocator (PYTORCH_ALLOC_CONF, _set_allocator_settings), as far as poolalloc has
// something to set.
#pragma once

#include <string>

namespace poolalloc::bridge {

// Called with one line for each setting that has no effect, once by name. On any thread, under no lock.
using Warn = void (*)(const char* text);

// From now on settings made at run time are heard of. Null: warnings go where torch's own go.
void follow_settings(Warn warn);

// What the environment says. Called when CUDA is initialized, as torch's own allocator reads it.
void apply_settings_of_environment();

// The backend that a text names which torch parses on this thread now; empty: none.
const std::string& backend_being_parsed();

// PYTORCH_NO_CUDA_MEMORY_CACHING: every tensor is an allocation of its own, as torch has it.
bool without_caching();

// Each key that this torch's parser knows, in a line with the value that poolalloc grants: "any", one, nothing; or
// "unknown".
std::string describe_settings();

}  // namespace poolalloc::bridge
