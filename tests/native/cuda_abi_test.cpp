// The declarations of driver/cuda_api.h are those of NVIDIA's header. Without the header there is nothing to compare.
#include <doctest/doctest.h>

#include "driver/cuda_api.h"
#include "skip.h"

#if __has_include(<cuda.h>)
#include <cuda.h>

#include <cstddef>
#include <cstring>
#include <string_view>
#include <type_traits>

namespace {

using namespace poolalloc;

// Two functions can stand in for each other if they take as many parameters, each passed in the same way.
template <typename A, typename B>
constexpr bool same_passing =
    sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B> &&
    std::is_floating_point_v<A> == std::is_floating_point_v<B> && std::is_class_v<A> == std::is_class_v<B>;
template <typename A, typename B>
struct Same : std::false_type {};
template <typename R1, typename... A, typename R2, typename... B>
  requires(sizeof...(A) == sizeof...(B))
struct Same<R1 (*)(A...), R2 (*)(B...)> : std::bool_constant<sizeof(R1) == sizeof(R2) && (same_passing<A, B> && ...)> {
};

// Since CUDA 13 the header has these only in a form with the data of edges. The driver is asked for the form of
// CUDA 11.3 (cuda_api.cpp), which cuda.h no longer declares.
constexpr bool has_newer_form(std::string_view name) {
  return CUDA_VERSION >= 13000 && (name == "StreamGetCaptureInfo" || name == "GraphNodeGetDependencies");
}

// The header renames each to its newest form (cuMemAlloc to cuMemAlloc_v2), the one that cuGetProcAddress returns.
#define X(name, parameters) \
  static_assert(Same<decltype(cuda::Api::name), decltype(&cu##name)>::value || has_newer_form(#name), #name);
POOLALLOC_CUDA_FUNCTIONS(X)
#undef X

static_assert(cuda::kSuccess == CUDA_SUCCESS);
static_assert(cuda::kOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(cuda::kNotReady == CUDA_ERROR_NOT_READY);
static_assert(cuda::kNotSupported == CUDA_ERROR_NOT_SUPPORTED);
static_assert(cuda::kCaptureImplicit == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
static_assert(cuda::kAttributeVirtualMemory == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
static_assert(cuda::kAttributePosixDescriptors == CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
static_assert(cuda::kHandleTypePosixDescriptor == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
static_assert(cuda::kAttributeRdmaWithVirtualMemory == CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED);
static_assert(cuda::kEventDisableTiming == CU_EVENT_DISABLE_TIMING);
static_assert(cuda::kCaptureStatusNone == CU_STREAM_CAPTURE_STATUS_NONE);
static_assert(cuda::kCaptureModeRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(cuda::kAllocationTypePinned == CU_MEM_ALLOCATION_TYPE_PINNED);
static_assert(cuda::kLocationTypeDevice == CU_MEM_LOCATION_TYPE_DEVICE);
static_assert(cuda::kAccessReadWrite == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
static_assert(cuda::kGranularityMinimum == CU_MEM_ALLOC_GRANULARITY_MINIMUM);
static_assert(cuda::kProcAddressLegacyStream == CU_GET_PROC_ADDRESS_LEGACY_STREAM);

static_assert(sizeof(cuda::AllocationProperties) == sizeof(CUmemAllocationProp));
static_assert(offsetof(cuda::AllocationProperties, location) == offsetof(CUmemAllocationProp, location));
static_assert(offsetof(cuda::AllocationProperties, compression_type) == offsetof(CUmemAllocationProp, allocFlags));
static_assert(offsetof(cuda::AllocationProperties, gpu_direct_rdma_capable) ==
              offsetof(CUmemAllocationProp, allocFlags.gpuDirectRDMACapable));
static_assert(sizeof(cuda::AccessDescription) == sizeof(CUmemAccessDesc));
static_assert(offsetof(cuda::AccessDescription, flags) == offsetof(CUmemAccessDesc, flags));

TEST_CASE("the declarations are those of the header") {
  // A structure filled by one declaration reads the same by the other.
  cuda::AllocationProperties ours;
  ours.location.id = 3;
  ours.gpu_direct_rdma_capable = 1;
  CUmemAllocationProp theirs;
  static_assert(sizeof ours == sizeof theirs);
  std::memcpy(&theirs, &ours, sizeof ours);
  CHECK(theirs.type == CU_MEM_ALLOCATION_TYPE_PINNED);
  CHECK(theirs.requestedHandleTypes == 0);
  CHECK((theirs.location.type == CU_MEM_LOCATION_TYPE_DEVICE && theirs.location.id == 3));
  CHECK((theirs.allocFlags.gpuDirectRDMACapable == 1 && theirs.allocFlags.usage == 0));
}

}  // namespace
#else
TEST_CASE("the declarations are those of the header") { SKIP("there is no cuda.h on this machine"); }
#endif
