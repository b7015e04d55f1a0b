// What is not simulated says so; see unsupported.def.
#include "simgpu/report.h"
#include "simgpu/simulator.h"

// Whatever the arguments are, they are not read.
#define UNSUPPORTED(name)                       \
  SIMGPU_API int name() {                       \
    return poolalloc::simgpu::runtime_call([] { \
      poolalloc::simgpu::unsupported(#name);    \
      return poolalloc::simgpu::kNotSupported;  \
    });                                         \
  }
#include "simgpu/unsupported.def"
