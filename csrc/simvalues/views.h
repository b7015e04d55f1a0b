// Tensors on a simulated device as plain places in memory, and copies of them on the host.
//
// A view keeps no reference to its tensor: what an operator sees must have the reference counts of a run without us.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "simgpu/operations.h"

namespace poolalloc::simvalues {

inline const SimgpuOperations* device = nullptr;  // set once, before any operator is looked at

struct View {
  char* data = nullptr;
  at::ScalarType type = at::ScalarType::Undefined;
  std::size_t item_bytes = 0;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;  // in elements
  std::int64_t elements = 0;
};

// How many elements of one operator are looked at on the host: control flow depends on few. Computed numbers are mostly
// unknown, so of floating point only what counts and scales things is worth a look.
constexpr std::int64_t kMaximumIntegers = 1 << 16;
constexpr std::int64_t kMaximumNumbers = 64;
constexpr std::int64_t kMaximumRuns = 4096;

inline std::int64_t maximum_elements(at::ScalarType type) {
  return at::isIntegralType(type, /*includeBool=*/true) ? kMaximumIntegers : kMaximumNumbers;
}

// A tensor whose elements lie in memory of a device, one by one; nothing for every other kind (sparse, quantized,
// wrapped by a transform, without storage).
inline bool lies_on_device(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return false;
  const auto* impl = tensor.unsafeGetTensorImpl();
  return !impl->is_python_dispatch() && tensor.layout() == at::kStrided && tensor.has_storage() &&
         !tensor.is_quantized() && !impl->has_symbolic_sizes_strides() &&
         !tensor.key_set().has_any(
             c10::DispatchKeySet({c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper,
                                  c10::DispatchKey::Functionalize, c10::DispatchKey::Conjugate,
                                  c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor}));
}

inline View view_of(const at::Tensor& tensor) {
  View view;
  view.elements = tensor.numel();
  view.type = tensor.scalar_type();
  view.item_bytes = tensor.itemsize();
  view.sizes = tensor.sizes().vec();
  view.strides = tensor.strides().vec();
  if (view.elements > 0) {
    auto* const base = static_cast<char*>(const_cast<void*>(tensor.storage().data()));
    if (base) view.data = base + tensor.storage_offset() * static_cast<std::int64_t>(view.item_bytes);
  }
  return view;
}

// Calls f(address, bytes, done) for each run of elements that lie side by side, in the order of a contiguous copy, with
// the bytes before it in that copy; stops when f returns false. False if it stopped, or there are too many runs.
template <class F>
bool for_each_run(const View& view, F&& f) {
  if (view.elements == 0) return true;
  if (!view.data) return false;
  std::int64_t run = 1;
  std::size_t outer = view.sizes.size();
  while (outer > 0 && (view.sizes[outer - 1] == 1 || view.strides[outer - 1] == run)) run *= view.sizes[--outer];
  if (view.elements / run > kMaximumRuns) return false;
  std::vector<std::int64_t> index(outer, 0);
  const std::size_t bytes = static_cast<std::size_t>(run) * view.item_bytes;
  for (std::int64_t done = 0; done < view.elements; done += run) {
    std::int64_t offset = 0;
    for (std::size_t dimension = 0; dimension < outer; ++dimension)
      offset += index[dimension] * view.strides[dimension];
    const auto item_bytes = static_cast<std::int64_t>(view.item_bytes);
    if (!f(view.data + offset * item_bytes, bytes, done * item_bytes)) return false;
    for (std::size_t dimension = outer; dimension-- > 0;) {
      if (++index[dimension] < view.sizes[dimension]) break;
      index[dimension] = 0;
    }
  }
  return true;
}

// What stands for elements that are not known: nothing (there must be none), every bit off, or every bit on.
enum class Unknown { kNone, kZero, kOnes };

// A copy on the host of a view, if it is known. `overwritten`: its elements do not matter.
inline std::optional<at::Tensor> read_view(const View& view, bool overwritten, Unknown unknown = Unknown::kNone) {
  at::Tensor copy = at::empty(view.sizes, at::TensorOptions().dtype(view.type).device(at::kCPU));
  auto* const to = static_cast<char*>(copy.data_ptr());
  if (overwritten) {
    std::memset(to, 0, copy.nbytes());
    return copy;
  }
  const bool known = for_each_run(view, [&](const char* address, std::size_t bytes, std::int64_t done) {
    if (device->read(address, bytes, to + done)) return true;
    if (unknown == Unknown::kNone) return false;
    const int byte = unknown == Unknown::kZero ? 0 : view.type == at::kBool ? 1 : 0xff;
    for (std::size_t item = 0; item < bytes; item += view.item_bytes) {
      if (device->read(address + item, view.item_bytes, to + done + item)) continue;
      std::memset(to + done + item, byte, view.item_bytes);
    }
    return true;
  });
  return known ? std::optional(copy) : std::nullopt;
}

// Makes a view show a result. `other` is the result that the operator has where unknown elements are different:
// elements in which the two differ are not known. False if the result is another kind of tensor.
inline bool write_view(const View& view, const at::Tensor& result, const at::Tensor* other, const char* operator_name) {
  if (!result.defined() || result.scalar_type() != view.type || !result.sizes().equals(view.sizes) ||
      view.elements > maximum_elements(view.type)) {
    return false;
  }
  const at::Tensor from = result.contiguous();
  const at::Tensor from_other = other ? other->contiguous() : from;
  const auto* const first = static_cast<const char*>(from.data_ptr());
  const auto* const second = static_cast<const char*>(from_other.data_ptr());
  const auto known = [&](std::int64_t at) { return std::memcmp(first + at, second + at, view.item_bytes) == 0; };
  return for_each_run(view, [&](char* address, std::size_t bytes, std::int64_t done) {
    const auto item = static_cast<std::int64_t>(view.item_bytes);
    const auto end = static_cast<std::int64_t>(bytes);
    for (std::int64_t at = 0; at < end;) {
      const bool now = known(done + at);
      std::int64_t next = at + item;
      while (next < end && known(done + next) == now) next += item;
      if (now) {
        device->write(address + at, static_cast<std::size_t>(next - at), first + done + at);
      } else {
        device->forget(address + at, static_cast<std::size_t>(next - at), operator_name);
      }
      at = next;
    }
    return true;
  });
}

// The bytes from the first element of a view to the end of its last. Strides are not negative.
inline std::size_t span_of(const View& view) {
  std::int64_t last = 0;
  for (std::size_t dimension = 0; dimension < view.sizes.size(); ++dimension) {
    last += (view.sizes[dimension] - 1) * view.strides[dimension];
  }
  return (static_cast<std::size_t>(last) + 1) * view.item_bytes;
}

// Makes all that a view may reach unknown.
inline void forget_view(const View& view, const char* operator_name) {
  if (view.elements == 0 || !view.data) return;
  const std::size_t span = span_of(view);
  const auto reached = static_cast<std::size_t>(view.elements) * view.item_bytes;
  // Rows of a larger tensor: its other elements stay known, where that is few steps.
  const bool done = span != reached && for_each_run(view, [&](char* address, std::size_t bytes, std::int64_t) {
                      device->forget(address, bytes, operator_name);
                      return true;
                    });
  if (!done) device->forget(view.data, span, operator_name);
}

}  // namespace poolalloc::simvalues
