// The table of NVML's functions, through which the trampolines of libnvidia-ml.so.1 jump.
#include "simgpu/driver_table.h"

// Only their addresses matter here, so every function is declared alike.
#define FUNCTION(name, version, symbol) extern "C" void symbol();
#include "simgpu/nvml.def"
#undef FUNCTION

extern "C" __attribute__((visibility("default"))) const poolalloc::simgpu::DriverFunction simgpu_nvml_table[] = {
#define FUNCTION(name, version, symbol) symbol,
#include "simgpu/nvml.def"
#undef FUNCTION
};
