// Library functions that must do more than succeed, except cuDNN's (cudnn.cpp) and NCCL's (nccl.cpp).
// Not for computing anything: results that a real device would compute are zeros here too.
#include <cstring>
#include <tuple>

#include "stub.h"

// Provided by the simulated runtime, in the same library.
extern "C" int cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                                 std::size_t width, std::size_t height, int kind, void* stream);

namespace poolalloc::simgpu_stubs {
namespace {

// Integer and pointer arguments take one slot each on every 64-bit Linux ABI, so a row of outputs.def can name its
// argument by position alone; arguments behind it are never read.
using Slot = std::uintptr_t;

template <int kArgument, typename Type, typename... Slots>
void write_output(Type value, Slots... slots) {
  // Some outputs may be left out (cuptiActivityPopExternalCorrelationId).
  auto* const output = reinterpret_cast<Type*>(std::get<kArgument>(std::make_tuple(slots...)));
  if (output) *output = value;
}

constexpr int kHostToDevice = 1;
constexpr int kDeviceToHost = 2;

constexpr int kPointersOnHost = 0;

template <typename Result>
int blas_scalar(const LibraryHandle* handle, Result* result, Result value) {
  if (handle->pointer_mode == kPointersOnHost) {
    *result = value;
  }
  return launch(handle->stream);
}

struct Complex {
  float real, imaginary;
};
struct DoubleComplex {
  double real, imaginary;
};

// --- cuBLASLt ---
struct LtHeuristicResult {
  std::uint64_t algorithm[8];
  std::size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
constexpr LtHeuristicResult kLtResult{{}, 0, 0, 1.0F, {}};

// --- cuSPARSELt: the opaque structure of a sparse matrix holds its dense size ---
struct LtSparseMatrix {
  std::uint64_t dense_bytes;
};

std::uint64_t cuda_type_bits(int type) {
  constexpr int kFloat32 = 0, kFloat16 = 2, kInt8 = 3, kBFloat16 = 14, kE4M3 = 28, kE5M2 = 29, kE2M1 = 33;
  switch (type) {
    case kFloat16:
    case kBFloat16:
      return 16;
    case kInt8:
    case kE4M3:
    case kE5M2:
      return 8;
    case kE2M1:
      return 4;
    case kFloat32:
    default:
      return 32;
  }
}

}  // namespace

#define SLOTS                                                                                                   \
  Slot a0, Slot a1, Slot a2, Slot a3, Slot a4, Slot a5, Slot a6, Slot a7, Slot a8, Slot a9, Slot a10, Slot a11, \
      Slot a12, Slot a13, Slot a14, Slot a15, Slot a16, Slot a17, Slot a18, Slot a19
#define SLOT_NAMES a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19
#define OUTPUT(function, argument, type, value)        \
  SIMGPU_STUB int function(SLOTS) {                    \
    write_output<argument, type>((value), SLOT_NAMES); \
    return 0;                                          \
  }
#define WORK_OUTPUT(function, argument, type, value)                   \
  SIMGPU_STUB int function(SLOTS) {                                    \
    write_output<argument, type>((value), SLOT_NAMES);                 \
    return launch(reinterpret_cast<const LibraryHandle*>(a0)->stream); \
  }
#define OUTPUT2(function, argument1, type1, value1, argument2, type2, value2) \
  SIMGPU_STUB int function(SLOTS) {                                           \
    write_output<argument1, type1>((value1), SLOT_NAMES);                     \
    write_output<argument2, type2>((value2), SLOT_NAMES);                     \
    return 0;                                                                 \
  }
#include "outputs.def"

// --- cuBLAS ---
// Results that land on the host when the pointer mode says so: indices (counted from one), norms and dot products.
#define BLAS_INDEX(function)                                                                  \
  SIMGPU_STUB int function(const LibraryHandle* handle, int, const void*, int, int* result) { \
    return blas_scalar(handle, result, 1);                                                    \
  }
#define BLAS_NORM(function, type)                                                              \
  SIMGPU_STUB int function(const LibraryHandle* handle, int, const void*, int, type* result) { \
    return blas_scalar<type>(handle, result, 0);                                               \
  }
#define BLAS_DOT(function, type)                                                                                 \
  SIMGPU_STUB int function(const LibraryHandle* handle, int, const void*, int, const void*, int, type* result) { \
    return blas_scalar<type>(handle, result, type{});                                                            \
  }
BLAS_INDEX(cublasIsamax_v2)
BLAS_INDEX(cublasIdamax_v2)
BLAS_INDEX(cublasIcamax_v2)
BLAS_INDEX(cublasIzamax_v2)
BLAS_INDEX(cublasIsamin_v2)
BLAS_INDEX(cublasIdamin_v2)
BLAS_INDEX(cublasIcamin_v2)
BLAS_INDEX(cublasIzamin_v2)
BLAS_NORM(cublasSnrm2_v2, float)
BLAS_NORM(cublasDnrm2_v2, double)
BLAS_NORM(cublasScnrm2_v2, float)
BLAS_NORM(cublasDznrm2_v2, double)
BLAS_NORM(cublasSasum_v2, float)
BLAS_NORM(cublasDasum_v2, double)
BLAS_NORM(cublasScasum_v2, float)
BLAS_NORM(cublasDzasum_v2, double)
BLAS_DOT(cublasSdot_v2, float)
BLAS_DOT(cublasDdot_v2, double)
BLAS_DOT(cublasCdotu_v2, Complex)
BLAS_DOT(cublasCdotc_v2, Complex)
BLAS_DOT(cublasZdotu_v2, DoubleComplex)
BLAS_DOT(cublasZdotc_v2, DoubleComplex)

SIMGPU_STUB int cublasSetMatrixAsync(int rows, int columns, int element, const void* from, int from_rows, void* to,
                                     int to_rows, void* stream) {
  const std::size_t bytes = static_cast<std::size_t>(element);
  return cudaMemcpy2DAsync(to, to_rows * bytes, from, from_rows * bytes, rows * bytes, columns, kHostToDevice, stream);
}
SIMGPU_STUB int cublasGetMatrixAsync(int rows, int columns, int element, const void* from, int from_rows, void* to,
                                     int to_rows, void* stream) {
  const std::size_t bytes = static_cast<std::size_t>(element);
  return cudaMemcpy2DAsync(to, to_rows * bytes, from, from_rows * bytes, rows * bytes, columns, kDeviceToHost, stream);
}
SIMGPU_STUB int cublasSetVectorAsync(int count, int element, const void* from, int from_step, void* to, int to_step,
                                     void* stream) {
  return cublasSetMatrixAsync(1, count, element, from, from_step, to, to_step, stream);
}
SIMGPU_STUB int cublasGetVectorAsync(int count, int element, const void* from, int from_step, void* to, int to_step,
                                     void* stream) {
  return cublasGetMatrixAsync(1, count, element, from, from_step, to, to_step, stream);
}

// --- cuBLASLt ---
SIMGPU_STUB std::size_t cublasLtGetVersion() { return 130000; }
SIMGPU_STUB int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int requested,
                                               LtHeuristicResult* results, int* returned) {
  *returned = requested > 0 ? 1 : 0;
  if (requested > 0) {
    results[0] = kLtResult;
  }
  return 0;
}
SIMGPU_STUB int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*,
                               const void*, void*, void*, void*, const void*, void*, std::size_t, void* stream) {
  return launch(stream);
}
SIMGPU_STUB int cublasLtMatmulAlgoCheck(void*, void*, void*, void*, void*, void*, void*, LtHeuristicResult* result) {
  *result = kLtResult;
  return 0;
}
SIMGPU_STUB int cublasLtMatmulAlgoConfigGetAttribute(const void*, int, void* buffer, std::size_t size,
                                                     std::size_t* written) {
  if (buffer != nullptr) {
    std::memset(buffer, 0, size);
  }
  put(written, size);
  return 0;
}

// --- cuSPARSE ---
SIMGPU_STUB const char* cusparseGetErrorString(int status) {
  return status == 0 ? "success" : "error of the simulated cuSPARSE";
}
// The number of non-zeros of a product is computed on the device, so it is zero; the shape is not asked for.
SIMGPU_STUB int cusparseSpMatGetSize(const void*, std::int64_t* rows, std::int64_t* columns, std::int64_t* nonzeros) {
  *rows = *columns = *nonzeros = 0;
  return 0;
}
// The sum is what two matrices with no place in common need: memory is never underestimated.
SIMGPU_STUB int cusparseXcsrgeam2Nnz(void*, int, int, const void*, int nonzeros_a, const int*, const int*, const void*,
                                     int nonzeros_b, const int*, const int*, const void*, int*, int* nonzeros, void*) {
  *nonzeros = nonzeros_a + nonzeros_b;
  return 0;
}

// --- cuSPARSELt ---
SIMGPU_STUB int cusparseLtStructuredDescriptorInit(const void*, LtSparseMatrix* matrix, std::int64_t rows,
                                                   std::int64_t columns, std::int64_t, std::uint32_t, int type, int,
                                                   int) {
  matrix->dense_bytes = static_cast<std::uint64_t>(rows * columns) * cuda_type_bits(type) / 8;
  return 0;
}
// Two of four values and two bits of position for each kept value: 9/16 of a dense 16-bit matrix.
SIMGPU_STUB int cusparseLtSpMMACompressedSize2(const void*, const LtSparseMatrix* matrix, std::size_t* compressed,
                                               std::size_t* buffer) {
  *compressed = matrix->dense_bytes * 9 / 16;
  *buffer = kWorkspaceBytes;
  return 0;
}
SIMGPU_STUB int cusparseLtSpMMACompress2(const void*, const void*, int, int, const void*, void*, void*, void* stream) {
  return launch(stream);
}
SIMGPU_STUB int cusparseLtMatmul(const void*, const void*, const void*, const void*, const void*, const void*,
                                 const void*, void*, void*, void** streams, std::int32_t count) {
  return launch(count > 0 ? streams[0] : nullptr);
}
SIMGPU_STUB int cusparseLtMatmulAlgGetAttribute(const void*, const void*, int, void* data, std::size_t size) {
  std::memset(data, 0, size);
  return 0;
}

// --- NVRTC ---
SIMGPU_STUB const char* nvrtcGetErrorString(int status) {
  return status == 0 ? "success" : "error of the simulated NVRTC";
}
// The caller keeps its expression alive for as long as it uses the program, so it can serve as the lowered name.
SIMGPU_STUB int nvrtcGetLoweredName(void*, const char* expression, const char** lowered) {
  *lowered = expression;
  return 0;
}

// torch also reaches the real NVRTC, by dlopen; that one needs no device, but takes for granted that a driver has this
// function, by which NVIDIA's libraries share tables of their own. There are none here.
SIMGPU_STUB int cuGetExportTable(const void** table, const void*) {
  constexpr int kNotSupported = 801;
  *table = nullptr;
  return kNotSupported;
}

// --- CUPTI ---
SIMGPU_STUB int cuptiActivityGetNextRecord(std::uint8_t*, std::size_t, void** record) {
  constexpr int kNoMoreRecords = 12;
  *record = nullptr;
  return kNoMoreRecords;
}
SIMGPU_STUB int cuptiGetResultString(int result, const char** text) {
  *text = result == 0 ? "success" : "error of the simulated CUPTI";
  return 0;
}
SIMGPU_STUB int cuptiGetCallbackName(int, std::uint32_t, const char** name) {
  *name = "simulated";
  return 0;
}

// --- cuFile: GPUDirect Storage reads into device memory by DMA; there is none, and saying so is what its users expect
// ---
namespace {
struct FileError {
  int file_error;
  int driver_error;
};
constexpr FileError kNoFileDriver{5007, 0};  // CU_FILE_PLATFORM_NOT_SUPPORTED
}  // namespace
SIMGPU_STUB FileError cuFileHandleRegister(void**, void*) { return kNoFileDriver; }
SIMGPU_STUB void cuFileHandleDeregister(void*) {}
SIMGPU_STUB FileError cuFileBufRegister(const void*, std::size_t, int) { return kNoFileDriver; }
SIMGPU_STUB FileError cuFileBufDeregister(const void*) { return kNoFileDriver; }
SIMGPU_STUB std::ptrdiff_t cuFileRead(void*, void*, std::size_t, std::int64_t, std::int64_t) { return -1; }
SIMGPU_STUB std::ptrdiff_t cuFileWrite(void*, const void*, std::size_t, std::int64_t, std::int64_t) { return -1; }

}  // namespace poolalloc::simgpu_stubs
