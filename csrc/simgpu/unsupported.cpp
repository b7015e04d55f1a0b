// What is not simulated says so; see unsupported.def.
#include "simgpu/report.h"
#include "simgpu/simulator.h"

// Whatever the arguments are, they are not read.
#define UNSUPPORTED(name)                                                            \
  SIMGPU_API int name() {                                                            \
    poolalloc::simgpu::unsupported(#name);                                           \
    poolalloc::simgpu::thread_state().last_error = poolalloc::simgpu::kNotSupported; \
    return poolalloc::simgpu::kNotSupported;                                         \
  }
#include "simgpu/unsupported.def"
