// Names and texts of the error codes, and the thread's last error.
#include "simgpu/errors.h"

#include "simgpu/report.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {

const char* runtime_error_name(int code) {
  switch (code) {
#define SIM_ERROR(constant, number, runtime_name, driver_name, text) \
  case number:                                                       \
    return runtime_name;
#include "simgpu/errors.def"
#undef SIM_ERROR
    default:
      return nullptr;
  }
}

const char* driver_error_name(int code) {
  switch (code) {
#define SIM_ERROR(constant, number, runtime_name, driver_name, text) \
  case number:                                                       \
    return driver_name;
#include "simgpu/errors.def"
#undef SIM_ERROR
    default:
      return nullptr;
  }
}

const char* error_text(int code) {
  switch (code) {
#define SIM_ERROR(constant, number, runtime_name, driver_name, text) \
  case number:                                                       \
    return text;
#include "simgpu/errors.def"
#undef SIM_ERROR
    default:
      return nullptr;
  }
}

}  // namespace poolalloc::simgpu

using namespace poolalloc::simgpu;

SIMGPU_API const char* cudaGetErrorName(int code) {
  const char* name = runtime_error_name(code);
  return name ? name : "unrecognized error code";
}

SIMGPU_API const char* cudaGetErrorString(int code) {
  const char* text = error_text(code);
  return text ? text : "unrecognized error code";
}

SIMGPU_API int cudaGetLastError() {
  const int error = thread_state().last_error;
  thread_state().last_error = kSuccess;
  return error;
}

SIMGPU_API int cudaPeekAtLastError() { return thread_state().last_error; }

SIMGPU_API int cuGetErrorName(int code, const char** name) {
  *name = driver_error_name(code);
  return *name ? kSuccess : kInvalidValue;
}

SIMGPU_API int cuGetErrorString(int code, const char** text) {
  *text = driver_error_name(code) ? error_text(code) : nullptr;
  return *text ? kSuccess : kInvalidValue;
}
