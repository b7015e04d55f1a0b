// cuDNN's functions that must do more than succeed: descriptors that can be asked back, the choice of a
// convolution algorithm, and the weight layout of recurrent networks.
// Not for the graph ("backend") API: it is refused, and the launcher keeps torch on the calls before it
// (poolalloc/sim says how), because a simulated plan would answer for choices that only the real library makes.
#include <algorithm>
#include <vector>

#include "stub.h"

extern "C" int cudaRuntimeGetVersion(int* version);

namespace poolalloc::simgpu_stubs {
namespace {

constexpr int kNotSupported = 3000;  // CUDNN_STATUS_NOT_SUPPORTED

// Newer than any torch of this cuDNN generation was compiled against: torch refuses an older minor version.
constexpr int kMajor = 9;
constexpr int kMinor = 99;
constexpr int kPatch = 0;

// Tensors and filters alike; a filter has a format and no strides.
struct TensorDescriptor {
  int type = 0;
  int format = 0;
  std::vector<int> sizes;
  std::vector<int> strides;
};

struct RnnDescriptor {
  int cell, bias, bidirectional, type, input, hidden, projection, layers;

  int directions() const { return bidirectional == 0 ? 1 : 2; }
  int output() const { return std::min(hidden, projection); }
  // Gates of one side (input or recurrent): ReLU and tanh 1, LSTM 4, GRU 3.
  int gates() const { return cell == 2 ? 4 : cell == 3 ? 3 : 1; }
  std::int64_t layer_input(int layer) const { return layer == 0 ? input : std::int64_t{output()} * directions(); }
  bool projects() const { return projection != hidden; }
  std::int64_t layer_weights(int layer) const {
    const std::int64_t sides = layer_input(layer) + output();
    return gates() * hidden * sides + (projects() ? std::int64_t{projection} * hidden : 0);
  }
  int biases() const { return bias == 0 ? 0 : bias == 2 ? 2 * gates() : gates(); }
};

struct RnnDataDescriptor {
  int type, max_length, batch, width;
};

std::size_t type_bytes(int type) {
  constexpr int kDouble = 1, kHalf = 2, kInt64 = 10, kBFloat16 = 9;
  return type == kDouble || type == kInt64 ? 8 : type == kHalf || type == kBFloat16 ? 2 : 4;
}

// The layout of the three cudnnConvolution*AlgoPerf_t structures.
struct ConvolutionChoice {
  int algorithm;
  int status;
  float milliseconds;
  std::size_t workspace_bytes;
  int deterministic;
  int math_type;
  int reserved[3];
};

// One answer: algorithm 1, which every direction has, for the caller's "best" and "deterministic" alike.
int choose_convolution(int requested, int* returned, ConvolutionChoice* choices) {
  *returned = requested > 0 ? 1 : 0;
  if (requested > 0) {
    choices[0] = {1, 0, 1.0F, kWorkspaceBytes, 1, 0, {}};
  }
  return 0;
}

// Tells the caller where a matrix is and what it looks like; it may ask for either, or for neither.
void place(TensorDescriptor* descriptor, void** address, void* place, int type, std::int64_t rows,
           std::int64_t columns) {
  if (descriptor != nullptr) {
    descriptor->type = type;
    descriptor->sizes = {1, static_cast<int>(rows), static_cast<int>(columns)};
    descriptor->strides = {static_cast<int>(rows * columns), static_cast<int>(columns), 1};
  }
  put(address, place);
}

void copy_out(const std::vector<int>& values, int requested, int* to) {
  std::copy_n(values.begin(), std::min<std::size_t>(values.size(), requested), to);
}

}  // namespace

// --- versions and texts ---
SIMGPU_STUB std::size_t cudnnGetVersion() { return kMajor * 10000 + kMinor * 100 + kPatch; }
SIMGPU_STUB std::size_t cudnnGetCudartVersion() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return static_cast<std::size_t>(version);
}
SIMGPU_STUB int cudnnGetProperty(int property, int* value) {
  *value = property == 0 ? kMajor : property == 1 ? kMinor : kPatch;
  return 0;
}
SIMGPU_STUB const char* cudnnGetErrorString(int status) {
  return status == 0               ? "CUDNN_STATUS_SUCCESS"
         : status == kNotSupported ? "CUDNN_STATUS_NOT_SUPPORTED (the simulated cuDNN has no graph API)"
                                   : "error of the simulated cuDNN";
}
SIMGPU_STUB void cudnnGetLastErrorString(char* message, std::size_t size) {
  if (size > 0) {
    *message = '\0';
  }
}

// --- tensors and filters ---
SIMGPU_STUB int cudnnCreateTensorDescriptor(TensorDescriptor** descriptor) {
  *descriptor = new TensorDescriptor;
  return 0;
}
SIMGPU_STUB int cudnnDestroyTensorDescriptor(TensorDescriptor* descriptor) {
  delete descriptor;
  return 0;
}
SIMGPU_STUB int cudnnSetTensorNdDescriptor(TensorDescriptor* descriptor, int type, int count, const int* sizes,
                                           const int* strides) {
  descriptor->type = type;
  descriptor->sizes.assign(sizes, sizes + count);
  descriptor->strides.assign(strides, strides + count);
  return 0;
}
SIMGPU_STUB int cudnnGetTensorNdDescriptor(const TensorDescriptor* descriptor, int requested, int* type, int* count,
                                           int* sizes, int* strides) {
  *type = descriptor->type;
  *count = static_cast<int>(descriptor->sizes.size());
  copy_out(descriptor->sizes, requested, sizes);
  copy_out(descriptor->strides, requested, strides);
  return 0;
}
SIMGPU_STUB int cudnnCreateFilterDescriptor(TensorDescriptor** descriptor) {
  return cudnnCreateTensorDescriptor(descriptor);
}
SIMGPU_STUB int cudnnDestroyFilterDescriptor(TensorDescriptor* descriptor) {
  return cudnnDestroyTensorDescriptor(descriptor);
}
SIMGPU_STUB int cudnnSetFilterNdDescriptor(TensorDescriptor* descriptor, int type, int format, int count,
                                           const int* sizes) {
  descriptor->type = type;
  descriptor->format = format;
  descriptor->sizes.assign(sizes, sizes + count);
  return 0;
}
SIMGPU_STUB int cudnnGetFilterNdDescriptor(const TensorDescriptor* descriptor, int requested, int* type, int* format,
                                           int* count, int* sizes) {
  *type = descriptor->type;
  *format = descriptor->format;
  *count = static_cast<int>(descriptor->sizes.size());
  copy_out(descriptor->sizes, requested, sizes);
  return 0;
}

// --- convolutions ---
#define CHOOSE(function)                                                                    \
  SIMGPU_STUB int function(void*, void*, void*, void*, void*, int requested, int* returned, \
                           ConvolutionChoice* choices) {                                    \
    return choose_convolution(requested, returned, choices);                                \
  }
#define FIND(function)                                                                                           \
  SIMGPU_STUB int function(void*, void*, void*, void*, void*, void*, void*, void*, int requested, int* returned, \
                           ConvolutionChoice* choices, void*, std::size_t) {                                     \
    return choose_convolution(requested, returned, choices);                                                     \
  }
CHOOSE(cudnnGetConvolutionForwardAlgorithm_v7)
CHOOSE(cudnnGetConvolutionBackwardDataAlgorithm_v7)
CHOOSE(cudnnGetConvolutionBackwardFilterAlgorithm_v7)
FIND(cudnnFindConvolutionForwardAlgorithmEx)
FIND(cudnnFindConvolutionBackwardDataAlgorithmEx)
FIND(cudnnFindConvolutionBackwardFilterAlgorithmEx)

// --- recurrent networks ---
SIMGPU_STUB int cudnnCreateRNNDescriptor(RnnDescriptor** descriptor) {
  *descriptor = new RnnDescriptor{};
  return 0;
}
SIMGPU_STUB int cudnnDestroyRNNDescriptor(RnnDescriptor* descriptor) {
  delete descriptor;
  return 0;
}
SIMGPU_STUB int cudnnSetRNNDescriptor_v8(RnnDescriptor* descriptor, int, int cell, int bias, int bidirectional, int,
                                         int type, int, int, int input, int hidden, int projection, int layers, void*,
                                         std::uint32_t) {
  *descriptor = {cell, bias, bidirectional, type, input, hidden, projection > 0 ? projection : hidden, layers};
  return 0;
}
SIMGPU_STUB int cudnnCreateRNNDataDescriptor(RnnDataDescriptor** descriptor) {
  *descriptor = new RnnDataDescriptor{};
  return 0;
}
SIMGPU_STUB int cudnnDestroyRNNDataDescriptor(RnnDataDescriptor* descriptor) {
  delete descriptor;
  return 0;
}
SIMGPU_STUB int cudnnSetRNNDataDescriptor(RnnDataDescriptor* descriptor, int type, int, int max_length, int batch,
                                          int width, const int*, void*) {
  *descriptor = {type, max_length, batch, width};
  return 0;
}
SIMGPU_STUB int cudnnGetRNNWeightSpaceSize(void*, const RnnDescriptor* rnn, std::size_t* bytes) {
  std::int64_t elements = std::int64_t{rnn->biases()} * rnn->hidden * rnn->layers * rnn->directions();
  for (int layer = 0; layer < rnn->layers; ++layer) {
    elements += rnn->layer_weights(layer) * rnn->directions();
  }
  *bytes = static_cast<std::size_t>(elements) * type_bytes(rnn->type);
  return 0;
}
// Training keeps the gates, the cell state and the output of every step; the true figure is the library's secret.
SIMGPU_STUB int cudnnGetRNNTempSpaceSizes(void*, const RnnDescriptor* rnn, int training, const RnnDataDescriptor* data,
                                          std::size_t* work_bytes, std::size_t* reserve_bytes) {
  const std::size_t step = type_bytes(rnn->type) * rnn->hidden * (rnn->gates() + 2) * rnn->directions();
  const std::size_t steps = static_cast<std::size_t>(data->batch) * data->max_length;
  put(work_bytes, kWorkspaceBytes);
  put(reserve_bytes, training != 0 ? step * steps * rnn->layers : 0);
  return 0;
}
// The weight space holds, layer by layer, the input gates, the recurrent gates and the projection, and behind all
// weights the biases in the same order. `part` counts input gates, then recurrent gates, then the projection.
SIMGPU_STUB int cudnnGetRNNWeightParams(void*, const RnnDescriptor* rnn, std::int32_t pseudo_layer, std::size_t,
                                        const void* space, std::int32_t part, TensorDescriptor* matrix,
                                        void** matrix_address, TensorDescriptor* bias, void** bias_address) {
  const int directions = rnn->directions();
  const int layer = pseudo_layer / directions;
  const std::int64_t hidden = rnn->hidden;
  const int gates = rnn->gates();
  const std::size_t element = type_bytes(rnn->type);
  char* const base = static_cast<char*>(const_cast<void*>(space));

  std::int64_t offset = rnn->layer_weights(layer) * (pseudo_layer % directions);
  std::int64_t all_weights = 0;
  for (int other = 0; other < rnn->layers; ++other) {
    all_weights += rnn->layer_weights(other) * directions;
    offset += other < layer ? rnn->layer_weights(other) * directions : 0;
  }
  const std::int64_t input = rnn->layer_input(layer);
  const bool is_projection = part >= 2 * gates;
  const bool is_recurrent = !is_projection && part >= gates;
  offset += hidden * input * std::min(part, gates);
  offset += hidden * rnn->output() * std::max(0, std::min(part, 2 * gates) - gates);
  char* const weights = base + offset * element;
  if (is_projection) {
    place(matrix, matrix_address, weights, rnn->type, rnn->output(), hidden);
  } else {
    place(matrix, matrix_address, weights, rnn->type, hidden, is_recurrent ? rnn->output() : input);
  }

  if (is_projection || part >= rnn->biases()) {
    place(bias, bias_address, nullptr, rnn->type, 0, 0);
    return 0;
  }
  const std::int64_t biases_before = std::int64_t{rnn->biases()} * pseudo_layer + part;
  place(bias, bias_address, base + (all_weights + hidden * biases_before) * element, rnn->type, hidden, 1);
  return 0;
}

// --- the graph API ---
SIMGPU_STUB int cudnnBackendCreateDescriptor(int, void**) { return kNotSupported; }
SIMGPU_STUB int cudnnBackendFinalize(void*) { return kNotSupported; }
SIMGPU_STUB int cudnnBackendExecute(void*, void*, void*) { return kNotSupported; }
SIMGPU_STUB int cudnnBackendGetAttribute(void*, int, int, std::int64_t, std::int64_t*, void*) { return kNotSupported; }
SIMGPU_STUB int cudnnBackendSetAttribute(void*, int, int, std::int64_t, const void*) { return kNotSupported; }

}  // namespace poolalloc::simgpu_stubs
