// Carries out operators of torch on the host where everything that goes into them is known and small, so that programs
// on the simulated GPU can decide by integers and booleans: a flag that ends a loop, a count that another rank sent, a
// mask without a hole.
//
// A callback sees each operator of torch when it begins and ends. At the beginning it copies the operator's arguments,
// if the simulated device knows them; at the end, if the operator launched kernels, it runs the same operator on the
// copies, on the CPU, and writes what came out where the kernels would have. Where that cannot be done, what the
// operator returns or changes becomes unknown and reads as zero. Nothing else of the device is forgotten.
//
// Compiled against the user's torch (poolalloc/sim/values.py); csrc/simgpu/operations.h says who calls it.
#include <ATen/core/ivalue.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <memory>
#include <utility>

#include "simvalues/operators.h"
#include "simvalues/views.h"

namespace poolalloc::simvalues {
namespace {

using Arguments = std::vector<c10::IValue>;

// One operator between its beginning and its end.
struct Running : at::ObserverContext {
  const Operator* op = nullptr;
  std::vector<std::pair<std::size_t, View>> written;  // by argument; several for a list
  std::vector<View> read;                             // where somebody watches
  // Arguments on the host, where they are known; the second time with other elements for those that are not.
  std::optional<Arguments> copies, other_copies;
  std::optional<Arguments> results;  // filled ahead for an operator that counts
};

// True while an operator is carried out here: what that calls is nobody else's.
thread_local bool busy = false;

// --- arguments ---------------------------------------------------------------------------------------------------

template <class F>
void for_each_tensor(const c10::IValue& value, F&& f) {
  if (value.isTensor()) {
    f(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorList()) f(tensor);
  } else if (value.isList()) {  // of optional tensors, among others
    for (const c10::IValue& item : value.toListRef()) {
      if (item.isTensor()) f(item.toTensor());
    }
  }
}

// `finite`: only whether its numbers are finite is asked, and that is known of many.
bool worth_a_look(const at::Tensor& tensor, bool finite) {
  return lies_on_device(tensor) &&
         tensor.numel() <= (finite ? kMaximumIntegers : maximum_elements(tensor.scalar_type()));
}

// How to copy an argument.
struct Reading {
  bool overwritten;
  Unknown unknown;
  bool finite;
};

std::optional<at::Tensor> copy_of(const at::Tensor& tensor, Reading how) {
  if (!tensor.defined()) return tensor;
  if (tensor.is_cuda()) {
    return worth_a_look(tensor, how.finite) ? read_view(view_of(tensor), how.overwritten, how.unknown) : std::nullopt;
  }
  const bool plain = tensor.is_cpu() && tensor.layout() == at::kStrided &&
                     !tensor.unsafeGetTensorImpl()->is_python_dispatch() &&
                     tensor.numel() <= maximum_elements(tensor.scalar_type());
  // An operator that writes into it has written the program's own by the time it is carried out here.
  return plain ? std::optional(tensor.detach().clone()) : std::nullopt;
}

// The same argument on the host; nothing if some of it is not known.
std::optional<c10::IValue> copy_of(const c10::IValue& value, Reading how) {
  if (value.isTensor()) {
    auto copy = copy_of(value.toTensor(), how);
    return copy ? std::optional<c10::IValue>(std::move(*copy)) : std::nullopt;
  }
  if (value.isDevice()) return c10::IValue(value.toDevice().is_cuda() ? c10::Device(at::kCPU) : value.toDevice());
  if (value.isTensorList()) {
    c10::List<at::Tensor> copies;
    for (const at::Tensor& tensor : value.toTensorList()) {
      auto copy = copy_of(tensor, how);
      if (!copy) return std::nullopt;
      copies.push_back(std::move(*copy));
    }
    return c10::IValue(std::move(copies));
  }
  if (value.isList()) {
    c10::impl::GenericList copies(value.toList().elementType());
    for (const c10::IValue& item : value.toListRef()) {
      auto copy = copy_of(item, how);
      if (!copy) return std::nullopt;
      copies.push_back(std::move(*copy));
    }
    return c10::IValue(std::move(copies));
  }
  return value;
}

// Whether the arguments have to do with a device, and are all small.
bool concerns_us(const Operator& op, c10::ArrayRef<const c10::IValue> inputs, bool finite) {
  bool concerned = false, small = true;
  for (const c10::IValue& value : inputs) {
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      if (!tensor.defined() || !tensor.is_cuda()) return;
      concerned = true;
      small = small && worth_a_look(tensor, finite);
    });
    concerned = concerned || (value.isDevice() && value.toDevice().is_cuda());
  }
  return concerned && small && inputs.size() == op.written.size();
}

// The arguments on the host; nothing if some are not known. With `unknown`, those that may be known in part have that
// in the place of unknown elements; any may if it is asked only whether they are finite.
std::optional<Arguments> copy_all(const Operator& op, c10::ArrayRef<const c10::IValue> inputs, Unknown unknown,
                                  bool finite = false) {
  Arguments copies;
  copies.reserve(inputs.size());
  for (std::size_t index = 0; index < inputs.size(); ++index) {
    const bool partly = finite || (index < 32 && (op.partly >> index & 1) != 0);
    auto copy = copy_of(inputs[index], {op.overwritten[index], partly ? unknown : Unknown::kNone, finite});
    if (!copy) return std::nullopt;
    copies.push_back(std::move(*copy));
  }
  return copies;
}

bool only_integers(c10::ArrayRef<const c10::IValue> inputs) {
  bool integers = true;
  for (const c10::IValue& value : inputs) {
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      integers = integers && (!tensor.defined() || at::isIntegralType(tensor.scalar_type(), /*includeBool=*/true));
    });
  }
  return integers;
}

void copy_arguments(Running& running, c10::ArrayRef<const c10::IValue> inputs) {
  const Operator& op = *running.op;
  const bool finite = op.computable && asks_whether_finite(op, inputs);
  if (!op.computable || !concerns_us(op, inputs, finite)) return;
  if (finite) {  // what is not known is, as zero is
    running.copies = copy_all(op, inputs, Unknown::kZero, finite);
    return;
  }
  running.copies = copy_all(op, inputs, Unknown::kNone);
  if (running.copies || op.partly == 0 || !only_integers(inputs)) return;
  running.copies = copy_all(op, inputs, Unknown::kZero);
  if (running.copies) running.other_copies = copy_all(op, inputs, Unknown::kOnes);
  if (!running.other_copies) running.copies.reset();
}

// --- carrying out ------------------------------------------------------------------------------------------------

// Runs the operator on its copied arguments, with nothing between it and the CPU's kernel: no autograd, no autocast, no
// mode or transform of the program. Returns its results; nothing if the CPU refuses.
std::optional<Arguments> compute(const Operator& op, const Arguments& copies) {
  const c10::impl::ForceDispatchKeyGuard plain(
      c10::DispatchKeySet(c10::DispatchKey::BackendSelect),
      c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset | c10::python_ks |
          c10::DispatchKeySet({c10::DispatchKey::PythonTLSSnapshot, c10::DispatchKey::PreDispatch,
                               c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                               c10::DispatchKey::FuncTorchDynamicLayerBackMode, c10::DispatchKey::Functionalize}));
  try {
    Arguments stack = copies;
    op.handle->callBoxed(stack);
    return stack;
  } catch (...) {
    return std::nullopt;
  }
}

struct Busy {
  Busy() { busy = true; }
  ~Busy() { busy = false; }
  at::DisableRecordFunctionGuard unseen;
};

// Writes a result, or a list of them. `other` as for write_view, or null.
bool write_result(const c10::IValue& place, const c10::IValue& result, const c10::IValue* other, const char* name) {
  if (place.isTensor() && result.isTensor()) {
    const at::Tensor* second = other && other->isTensor() ? &other->toTensor() : nullptr;
    return lies_on_device(place.toTensor()) && write_view(view_of(place.toTensor()), result.toTensor(), second, name);
  }
  if (!place.isTensorList() || !result.isTensorList() || other) return !place.isTensorList() && !place.isTensor();
  const auto places = place.toTensorVector();
  const auto results = result.toTensorVector();
  for (std::size_t index = 0; index < places.size() && index < results.size(); ++index) {
    if (!lies_on_device(places[index]) || !write_view(view_of(places[index]), results[index], nullptr, name))
      return false;
  }
  return places.size() == results.size();
}

// Writes what the operator returned and changed. False if some of it could not be.
bool write_results(const Running& running, const Arguments* others, const std::vector<c10::IValue>& outputs) {
  const Operator& op = *running.op;
  const Arguments& results = *running.results;
  if (outputs.size() != results.size() || results.size() != op.argument_of_return.size()) return false;
  std::vector<bool> shown(op.written.size(), false);
  for (std::size_t index = 0; index < results.size(); ++index) {
    const int argument = op.argument_of_return[index];
    if (argument == -2) continue;
    if (argument >= 0) shown[static_cast<std::size_t>(argument)] = true;
    if (!write_result(outputs[index], results[index], others ? &(*others)[index] : nullptr, op.name.c_str()))
      return false;
  }
  std::vector<std::size_t> used(op.written.size(), 0);
  for (const auto& [argument, view] : running.written) {
    if (shown[argument]) continue;
    const c10::IValue& copy = (*running.copies)[argument];
    const at::Tensor result = copy.isTensor() ? copy.toTensor() : copy.toTensorVector().at(used[argument]++);
    if (others || !write_view(view, result, nullptr, op.name.c_str())) return false;
  }
  return true;
}

void forget_results(const Running& running, const std::vector<c10::IValue>& outputs) {
  const char* const name = running.op->name.c_str();
  for (const auto& [argument, view] : running.written) forget_view(view, name);
  for (std::size_t index = 0; index < outputs.size(); ++index) {
    // A view that nothing was written through shows what is known.
    if (index < running.op->argument_of_return.size() && running.op->argument_of_return[index] == -2) continue;
    for_each_tensor(outputs[index], [&](const at::Tensor& tensor) {
      if (lies_on_device(tensor)) forget_view(view_of(tensor), name);
    });
  }
}

void tell_uses(const Running& running, const std::vector<c10::IValue>& outputs) {
  const auto tell = [](const View& view, bool write) {
    if (view.elements == 0 || !view.data) return;
    // Columns of a larger tensor share their span with others.
    const std::size_t span = span_of(view);
    if (span <= static_cast<std::size_t>(view.elements) * view.item_bytes) device->use(view.data, span, write);
  };
  for (const View& view : running.read) tell(view, false);
  for (const auto& [argument, view] : running.written) tell(view, true);
  for (std::size_t index = 0; index < outputs.size(); ++index) {
    if (index < running.op->argument_of_return.size() && running.op->argument_of_return[index] == -2) continue;
    for_each_tensor(outputs[index], [&](const at::Tensor& tensor) {
      if (lies_on_device(tensor)) tell(view_of(tensor), true);
    });
  }
}

// --- callbacks ---------------------------------------------------------------------------------------------------

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  if (busy) return nullptr;
  const Busy guard;
  const Operator& op = find_operator(function);
  auto running = std::make_unique<Running>();
  running->op = &op;
  device->begin(op.name.c_str());
  if (op.view_only || !op.handle) return running;
  const auto inputs = function.inputs();
  for (std::size_t index = 0; index < inputs.size() && index < op.written.size(); ++index) {
    if (!op.written[index]) continue;
    for_each_tensor(inputs[index], [&](const at::Tensor& tensor) {
      if (lies_on_device(tensor)) running->written.emplace_back(index, view_of(tensor));
    });
  }
  if (device->watching()) {
    for (const c10::IValue& value : inputs) {
      for_each_tensor(value, [&](const at::Tensor& tensor) {
        if (lies_on_device(tensor)) running->read.push_back(view_of(tensor));
      });
    }
  }
  try {
    copy_arguments(*running, inputs);
  } catch (...) {  // an argument of a form that is not known here
    running->copies.reset();
  }
  if (op.counts && running->copies) {
    running->results = compute(op, *running->copies);
    if (running->results) device->answer(running->results->front().toTensor().size(0));
  }
  return running;
}

void end(const at::RecordFunction& function, at::ObserverContext* context) {
  if (!context) return;
  const Busy guard;
  auto& running = *static_cast<Running*>(context);
  if (device->watching()) tell_uses(running, function.outputs());
  const std::uint64_t launches = device->end();
  if (launches == 0) {
    if (running.op->makes_memory) forget_results(running, function.outputs());
    return;
  }
  if (running.copies && !running.results) running.results = compute(*running.op, *running.copies);
  std::optional<Arguments> others;
  if (running.results && running.other_copies) others = compute(*running.op, *running.other_copies);
  const bool computed = running.results && others.has_value() == running.other_copies.has_value();
  try {
    if (computed && write_results(running, others ? &*others : nullptr, function.outputs())) return;
  } catch (...) {  // results of another form than the operator's: they stay unknown
  }
  forget_results(running, function.outputs());
}

}  // namespace
}  // namespace poolalloc::simvalues

#define SIMVALUES_API extern "C" __attribute__((visibility("default")))

SIMVALUES_API const char poolalloc_simvalues_torch[] = POOLALLOC_TORCH_FOLDER;

SIMVALUES_API void poolalloc_simvalues_attach(const SimgpuOperations* operations) {
  using namespace poolalloc::simvalues;
  device = operations;
  at::addGlobalCallback(
      at::RecordFunctionCallback(begin, end).needsInputs(true).needsOutputs(true).scopes({at::RecordScope::FUNCTION}));
}
