// Error codes shared by the runtime and the driver interface, and their names.
#pragma once

namespace poolalloc::simgpu {

enum Error : int {
#define SIM_ERROR(constant, code, runtime_name, driver_name, text) constant = code,
#include "simgpu/errors.def"
#undef SIM_ERROR
};

// Name and text of a code as the runtime and the driver print them; null for a code that is not in the table.
const char* runtime_error_name(int code);
const char* driver_error_name(int code);
const char* error_text(int code);

}  // namespace poolalloc::simgpu
