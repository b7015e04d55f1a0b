// What libsimgpu.so exports besides CUDA: figures of the simulated devices, for tests and benchmarks.
//
// A program that runs under the simulator finds these with dlsym(RTLD_DEFAULT, ...) or ctypes.CDLL(None). "Used" means
// physical memory: cudaMalloc rounded to 2 MiB, handles of cuMemCreate until they are both released and unmapped, and
// what stream-ordered pools hold. Every function may be called from any thread; sizes are bytes.
#pragma once

#include <cstdint>

#define SIMGPU_API extern "C" __attribute__((visibility("default")))

// Physical bytes in use on a device, now and at most; 0 for an unknown device.
SIMGPU_API std::uint64_t simgpu_used_bytes(int device);
SIMGPU_API std::uint64_t simgpu_peak_used_bytes(int device);
// The peak becomes what is in use now.
SIMGPU_API void simgpu_reset_peak(int device);
SIMGPU_API std::uint64_t simgpu_capacity_bytes(int device);
// Calls of one CUDA function so far; driver functions go by their name without _v2.
SIMGPU_API std::uint64_t simgpu_calls(const char* api_name);
// Calls that broke a rule of CUDA (double free, unmap of what is not mapped, ...), all kinds together.
SIMGPU_API std::uint64_t simgpu_violations(void);
// From now on every call fails, as after a kernel that touched memory that is not its own.
SIMGPU_API void simgpu_lose_devices(void);
// Writes the report, terminated, into the buffer as far as it fits; returns the length it needs without terminator.
SIMGPU_API int simgpu_report_json(char* buffer, int size);
