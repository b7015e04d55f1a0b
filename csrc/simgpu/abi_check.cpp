// Compares cuda_abi.h with NVIDIA's own headers. Compiled only where those are found, and never linked: the assertions
// are the whole content.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "simgpu/cuda_abi.h"
#include "simgpu/errors.h"

namespace abi = poolalloc::simgpu::abi;
using namespace poolalloc::simgpu;

#define SAME_SIZE(ours, theirs) static_assert(sizeof(abi::ours) == sizeof(theirs), #ours)
#define SAME_FIELD(ours, theirs, field) \
  static_assert(offsetof(abi::ours, field) == offsetof(theirs, field), #ours "." #field)
#define SAME_VALUE(ours, theirs) static_assert(static_cast<long long>(ours) == static_cast<long long>(theirs), #ours)

// --- device properties ---
#if CUDART_VERSION >= 13000
using Properties = abi::DeviceProp13;
#define SAME_PROPERTY(field) \
  static_assert(offsetof(abi::DeviceProp13, field) == offsetof(cudaDeviceProp, field), "cudaDeviceProp." #field)
SAME_PROPERTY(hostNumaId);
SAME_PROPERTY(hostNumaMultinodeIpcSupported);
#else
using Properties = abi::DeviceProp12;
#define SAME_PROPERTY(field) \
  static_assert(offsetof(abi::DeviceProp12, field) == offsetof(cudaDeviceProp, field), "cudaDeviceProp." #field)
SAME_PROPERTY(clockRate);
SAME_PROPERTY(memoryClockRate);
SAME_PROPERTY(computeMode);
#endif
static_assert(sizeof(Properties) == sizeof(cudaDeviceProp));
SAME_PROPERTY(uuid);
SAME_PROPERTY(totalGlobalMem);
SAME_PROPERTY(sharedMemPerBlock);
SAME_PROPERTY(warpSize);
SAME_PROPERTY(maxThreadsDim);
SAME_PROPERTY(major);
SAME_PROPERTY(textureAlignment);
SAME_PROPERTY(multiProcessorCount);
SAME_PROPERTY(canMapHostMemory);
SAME_PROPERTY(maxTexture3D);
SAME_PROPERTY(maxSurfaceCubemapLayered);
SAME_PROPERTY(surfaceAlignment);
SAME_PROPERTY(pciBusID);
SAME_PROPERTY(unifiedAddressing);
SAME_PROPERTY(l2CacheSize);
SAME_PROPERTY(maxThreadsPerMultiProcessor);
SAME_PROPERTY(sharedMemPerMultiprocessor);
SAME_PROPERTY(cooperativeLaunch);
SAME_PROPERTY(sharedMemPerBlockOptin);
SAME_PROPERTY(maxBlocksPerMultiProcessor);
SAME_PROPERTY(reservedSharedMemPerBlock);
SAME_PROPERTY(memoryPoolsSupported);
SAME_PROPERTY(clusterLaunch);

// --- memory ---
SAME_FIELD(PointerAttributes, cudaPointerAttributes, type);
SAME_FIELD(PointerAttributes, cudaPointerAttributes, device);
SAME_FIELD(PointerAttributes, cudaPointerAttributes, devicePointer);
SAME_FIELD(PointerAttributes, cudaPointerAttributes, hostPointer);
SAME_SIZE(MemLocation, CUmemLocation);
SAME_SIZE(MemLocation, cudaMemLocation);
SAME_SIZE(MemAccessDesc, CUmemAccessDesc);
SAME_SIZE(MemAccessDesc, cudaMemAccessDesc);
SAME_SIZE(AllocationProp, CUmemAllocationProp);
SAME_FIELD(AllocationProp, CUmemAllocationProp, requestedHandleTypes);
SAME_FIELD(AllocationProp, CUmemAllocationProp, location);
SAME_FIELD(AllocationProp, CUmemAllocationProp, allocFlags);
SAME_SIZE(MemPoolProps, cudaMemPoolProps);
SAME_FIELD(MemPoolProps, cudaMemPoolProps, location);
SAME_SIZE(PitchedPtr, cudaPitchedPtr);
SAME_SIZE(Extent3, cudaExtent);
SAME_SIZE(Pos3, cudaPos);
SAME_SIZE(Memcpy3DParms, cudaMemcpy3DParms);
SAME_FIELD(Memcpy3DParms, cudaMemcpy3DParms, extent);
SAME_SIZE(IpcHandle, cudaIpcMemHandle_t);
SAME_SIZE(IpcHandle, cudaIpcEventHandle_t);
SAME_VALUE(abi::kDeviceToHost, cudaMemcpyDeviceToHost);
SAME_VALUE(abi::kCopyDefault, cudaMemcpyDefault);
SAME_VALUE(abi::kMemoryManaged, cudaMemoryTypeManaged);
SAME_VALUE(abi::kLocationDevice, CU_MEM_LOCATION_TYPE_DEVICE);
SAME_VALUE(abi::kAccessReadWrite, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
SAME_VALUE(abi::kAllocationPinned, CU_MEM_ALLOCATION_TYPE_PINNED);
SAME_VALUE(abi::kHandlePosixFd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
SAME_VALUE(abi::kPoolReleaseThreshold, cudaMemPoolAttrReleaseThreshold);
SAME_VALUE(abi::kPoolUsedHigh, cudaMemPoolAttrUsedMemHigh);
SAME_VALUE(abi::kGraphMemReservedHigh, cudaGraphMemAttrReservedMemHigh);
SAME_VALUE(abi::kPointerContext, CU_POINTER_ATTRIBUTE_CONTEXT);
SAME_VALUE(abi::kPointerDeviceOrdinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME_VALUE(abi::kPointerRangeStart, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR);
SAME_VALUE(abi::kPointerMempoolHandle, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE);

// --- streams, events, graphs ---
SAME_VALUE(abi::kStreamNonBlocking, cudaStreamNonBlocking);
SAME_VALUE(abi::kEventDisableTiming, cudaEventDisableTiming);
SAME_VALUE(abi::kEventInterprocess, cudaEventInterprocess);
SAME_VALUE(abi::kEventRecordExternal, cudaEventRecordExternal);
SAME_VALUE(abi::kCaptureInvalidated, cudaStreamCaptureStatusInvalidated);
SAME_VALUE(abi::kCaptureThreadLocal, cudaStreamCaptureModeThreadLocal);
SAME_VALUE(abi::kCaptureRelaxed, cudaStreamCaptureModeRelaxed);
SAME_VALUE(abi::kSetDependencies, cudaStreamSetCaptureDependencies);
SAME_VALUE(abi::kNodeMemAlloc, cudaGraphNodeTypeMemAlloc);
SAME_VALUE(abi::kNodeMemFree, cudaGraphNodeTypeMemFree);
SAME_VALUE(abi::kNodeEventRecord, cudaGraphNodeTypeEventRecord);
SAME_SIZE(HostNodeParams, cudaHostNodeParams);
SAME_SIZE(GraphInstantiateParams, cudaGraphInstantiateParams);
#if CUDART_VERSION >= 12030
SAME_VALUE(abi::kNodeConditional, cudaGraphNodeTypeConditional);
SAME_SIZE(GraphEdgeData, cudaGraphEdgeData);
SAME_SIZE(GraphNodeParams, cudaGraphNodeParams);
SAME_FIELD(GraphNodeParams, cudaGraphNodeParams, conditional);
static_assert(offsetof(abi::ConditionalNodeParams, graphs_out) == offsetof(cudaConditionalNodeParams, phGraph_out));
static_assert(offsetof(abi::ConditionalNodeParams, size) == offsetof(cudaConditionalNodeParams, size));
#endif

// --- kernels ---
SAME_SIZE(Dim3, dim3);
SAME_SIZE(LaunchConfig, cudaLaunchConfig_t);
static_assert(offsetof(abi::LaunchConfig, stream) == offsetof(cudaLaunchConfig_t, stream));
SAME_SIZE(DriverLaunchConfig, CUlaunchConfig);
static_assert(offsetof(abi::DriverLaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
SAME_SIZE(FuncAttributes, cudaFuncAttributes);
SAME_FIELD(FuncAttributes, cudaFuncAttributes, maxThreadsPerBlock);
SAME_FIELD(FuncAttributes, cudaFuncAttributes, binaryVersion);
SAME_FIELD(FuncAttributes, cudaFuncAttributes, maxDynamicSharedSizeBytes);
SAME_FIELD(FuncAttributes, cudaFuncAttributes, nonPortableClusterSizeAllowed);
SAME_VALUE(abi::kFuncNumRegs, CU_FUNC_ATTRIBUTE_NUM_REGS);
SAME_VALUE(abi::kFuncBinaryVersion, CU_FUNC_ATTRIBUTE_BINARY_VERSION);
SAME_VALUE(abi::kFuncMaxDynamicSharedSizeBytes, cudaFuncAttributeMaxDynamicSharedMemorySize);
SAME_VALUE(abi::kProcVersionTooOld, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);

// --- device attributes used by number in properties.cpp ---
SAME_VALUE(8, cudaDevAttrMaxSharedMemoryPerBlock);
SAME_VALUE(16, cudaDevAttrMultiProcessorCount);
SAME_VALUE(38, cudaDevAttrL2CacheSize);
SAME_VALUE(39, cudaDevAttrMaxThreadsPerMultiProcessor);
SAME_VALUE(75, cudaDevAttrComputeCapabilityMajor);
SAME_VALUE(81, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
SAME_VALUE(82, cudaDevAttrMaxRegistersPerMultiprocessor);
SAME_VALUE(97, cudaDevAttrMaxSharedMemoryPerBlockOptin);
SAME_VALUE(102, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
SAME_VALUE(106, cudaDevAttrMaxBlocksPerMultiprocessor);
SAME_VALUE(115, cudaDevAttrMemoryPoolsSupported);
SAME_VALUE(120, cudaDevAttrClusterLaunch);

// --- errors ---
SAME_VALUE(kOutOfMemory, cudaErrorMemoryAllocation);
SAME_VALUE(kNotInitialized, cudaErrorInitializationError);
SAME_VALUE(kInvalidConfiguration, cudaErrorInvalidConfiguration);
SAME_VALUE(kInvalidSymbol, cudaErrorInvalidSymbol);
SAME_VALUE(kInvalidMemcpyDirection, cudaErrorInvalidMemcpyDirection);
SAME_VALUE(kInsufficientDriver, cudaErrorInsufficientDriver);
SAME_VALUE(kNoDevice, cudaErrorNoDevice);
SAME_VALUE(kInvalidContext, cudaErrorDeviceUninitialized);
SAME_VALUE(kInvalidHandle, cudaErrorInvalidResourceHandle);
SAME_VALUE(kIllegalState, cudaErrorIllegalState);
SAME_VALUE(kNotFound, cudaErrorSymbolNotFound);
SAME_VALUE(kNotReady, cudaErrorNotReady);
SAME_VALUE(kPeerAccessAlreadyEnabled, cudaErrorPeerAccessAlreadyEnabled);
SAME_VALUE(kHostAlreadyRegistered, cudaErrorHostMemoryAlreadyRegistered);
SAME_VALUE(kNotSupported, cudaErrorNotSupported);
SAME_VALUE(kCaptureUnsupported, cudaErrorStreamCaptureUnsupported);
SAME_VALUE(kCaptureInvalidatedError, cudaErrorStreamCaptureInvalidated);
SAME_VALUE(kCaptureMerge, cudaErrorStreamCaptureMerge);
SAME_VALUE(kCaptureUnmatched, cudaErrorStreamCaptureUnmatched);
SAME_VALUE(kCaptureUnjoined, cudaErrorStreamCaptureUnjoined);
SAME_VALUE(kCaptureIsolation, cudaErrorStreamCaptureIsolation);
SAME_VALUE(kCaptureImplicit, cudaErrorStreamCaptureImplicit);
SAME_VALUE(kCapturedEvent, cudaErrorCapturedEvent);
SAME_VALUE(kCaptureWrongThread, cudaErrorStreamCaptureWrongThread);
