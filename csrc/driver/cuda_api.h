// The part of the CUDA driver's binary interface that CudaDriver calls, declared here because no CUDA header is needed
// to build poolalloc, and its functions, found in libcuda.so.1 at run time. tests/native/cuda_abi_test.cpp compares
// these declarations with the real header where there is one. Internal to csrc/driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace poolalloc::cuda {

using Result = int;  // CUresult
using Device = int;  // CUdevice
using DevicePointer = std::uint64_t;
using AllocationHandle = std::uint64_t;
using Context = struct ContextTag*;
using GraphNode = struct GraphNodeTag*;
using Stream = struct StreamTag*;
using Event = struct EventTag*;

inline constexpr Result kSuccess = 0;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNotReady = 600;
inline constexpr Result kNotSupported = 801;
inline constexpr Result kCaptureImplicit = 906;  // the legacy stream would wait for a stream that is being captured

inline constexpr int kAttributeVirtualMemory = 102;
inline constexpr int kAttributePosixDescriptors = 103;
inline constexpr int kAttributeRdmaWithVirtualMemory = 110;
inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr int kCaptureStatusNone = 0;
inline constexpr int kCaptureStatusActive = 1;
inline constexpr int kCaptureModeRelaxed = 2;
inline constexpr int kAllocationTypePinned = 1;
inline constexpr int kHandleTypePosixDescriptor = 1;
inline constexpr int kLocationTypeDevice = 1;
inline constexpr int kAccessReadWrite = 3;
inline constexpr int kGranularityMinimum = 0;
inline constexpr std::uint64_t kProcAddressLegacyStream = 1;

struct Location {
  int type = kLocationTypeDevice;
  int id = 0;
};
struct AllocationProperties {
  int type = kAllocationTypePinned;
  int requested_handle_types = 0;
  Location location;
  void* win32_metadata = nullptr;
  unsigned char compression_type = 0;
  unsigned char gpu_direct_rdma_capable = 0;
  unsigned short usage = 0;
  unsigned char reserved[4] = {};
};
struct AccessDescription {
  Location location;
  int flags = kAccessReadWrite;
};
static_assert(sizeof(AllocationProperties) == 32 && sizeof(AccessDescription) == 12);

// name without "cu", parameters. All return CUresult.
// clang-format off
#define POOLALLOC_CUDA_FUNCTIONS(X)                                                                            \
  X(Init, (unsigned flags))                                                                                    \
  X(DeviceGetCount, (int* count))                                                                              \
  X(DeviceGet, (Device* device, int ordinal))                                                                  \
  X(DeviceGetName, (char* name, int size, Device device))                                                      \
  X(DeviceTotalMem, (std::size_t* bytes, Device device))                                                       \
  X(DeviceGetAttribute, (int* value, int attribute, Device device))                                            \
  X(DevicePrimaryCtxRetain, (Context* context, Device device))                                                 \
  X(DevicePrimaryCtxRelease, (Device device))                                                                  \
  X(DevicePrimaryCtxGetState, (Device device, unsigned* flags, int* active))                                   \
  X(CtxGetCurrent, (Context* context))                                                                         \
  X(CtxPushCurrent, (Context context))                                                                         \
  X(CtxPopCurrent, (Context* context))                                                                         \
  X(CtxSynchronize, ())                                                                                        \
  X(MemGetInfo, (std::size_t* free_bytes, std::size_t* total_bytes))                                           \
  X(MemGetAllocationGranularity, (std::size_t* bytes, const AllocationProperties* properties, int option))     \
  X(MemAddressReserve, (DevicePointer* address, std::size_t bytes, std::size_t alignment, DevicePointer wanted, \
                        unsigned long long flags))                                                             \
  X(MemAddressFree, (DevicePointer address, std::size_t bytes))                                                \
  X(MemCreate, (AllocationHandle* handle, std::size_t bytes, const AllocationProperties* properties,           \
                unsigned long long flags))                                                                     \
  X(MemRelease, (AllocationHandle handle))                                                                     \
  X(MemMap, (DevicePointer address, std::size_t bytes, std::size_t offset, AllocationHandle handle,            \
             unsigned long long flags))                                                                        \
  X(MemSetAccess, (DevicePointer address, std::size_t bytes, const AccessDescription* access, std::size_t count)) \
  X(MemUnmap, (DevicePointer address, std::size_t bytes))                                                      \
  X(MemExportToShareableHandle, (void* descriptor, AllocationHandle handle, int type, unsigned long long flags)) \
  X(MemImportFromShareableHandle, (AllocationHandle* handle, void* descriptor, int type))                      \
  X(MemAlloc, (DevicePointer* address, std::size_t bytes))                                                     \
  X(MemFree, (DevicePointer address))                                                                          \
  X(MemHostAlloc, (void** host, std::size_t bytes, unsigned flags))                                            \
  X(MemFreeHost, (void* host))                                                                                 \
  X(MemcpyDtoHAsync, (void* host, DevicePointer address, std::size_t bytes, Stream stream))                    \
  X(MemcpyHtoDAsync, (DevicePointer address, const void* host, std::size_t bytes, Stream stream))              \
  X(StreamCreate, (Stream* stream, unsigned flags))                                                            \
  X(StreamDestroy, (Stream stream))                                                                            \
  X(EventCreate, (Event* event, unsigned flags))                                                               \
  X(EventDestroy, (Event event))                                                                               \
  X(EventRecord, (Event event, Stream stream))                                                                 \
  X(EventQuery, (Event event))                                                                                 \
  X(EventSynchronize, (Event event))                                                                           \
  X(StreamWaitEvent, (Stream stream, Event event, unsigned flags))                                             \
  X(StreamIsCapturing, (Stream stream, int* status))                                                           \
  X(StreamGetCaptureInfo, (Stream stream, int* status, unsigned long long* id, void** graph, const GraphNode** nodes, \
                           std::size_t* count))                                                                  \
  X(GraphNodeGetDependencies, (GraphNode node, GraphNode* dependencies, std::size_t* count))                   \
  X(StreamGetCtx, (Stream stream, Context* context))                                                           \
  X(CtxGetDevice, (Device* device))                                                                            \
  X(ThreadExchangeStreamCaptureMode, (int* mode))                                                              \
  X(GetErrorName, (Result result, const char** name))                                                          \
  X(GetErrorString, (Result result, const char** text))
// clang-format on

struct Api {
#define X(name, parameters) Result(*name) parameters = nullptr;
  POOLALLOC_CUDA_FUNCTIONS(X)
#undef X
  int devices = 0;
  std::string problem;  // empty if the driver is there and has a device
};

// Opens libcuda.so.1 and initializes the driver, the first time only; never closes it. Any thread.
const Api& api();
// "CUDA_ERROR_INVALID_VALUE (1): invalid argument"
std::string describe(Result result);

}  // namespace poolalloc::cuda
