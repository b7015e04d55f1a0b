// What is to know of an operator of torch, looked up once: which arguments it writes, which results are new, and
// whether the host can carry it out.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>

#include <cmath>
#include <cstring>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace poolalloc::simvalues {

struct Operator {
  std::string name;
  std::string overload;
  std::optional<c10::OperatorHandle> handle;
  bool view_only = false;     // returns views and writes nothing
  bool makes_memory = false;  // hands out memory as it is
  bool computable = false;
  unsigned partly = 0;                  // bit by argument: may be known in part
  bool counts = false;                  // its kernels count what it returns, and it reads their count
  std::vector<bool> written;            // by argument
  std::vector<bool> overwritten;        // by argument: written without being read
  std::vector<int> argument_of_return;  // by return: the written argument it is; -1 for a new result, -2 for a view
};

// Operators that write every element of their first argument without reading it. Those of out arguments are known by
// their schema.
inline bool overwrites_self(const std::string& name) {
  static const std::unordered_set<std::string> names{"aten::fill_", "aten::zero_", "aten::copy_"};
  return names.contains(name);
}

inline bool makes_memory(const std::string& name) {
  return name.starts_with("aten::empty") || name.starts_with("aten::new_empty") || name.starts_with("aten::_empty");
}

// Operators that say something although some of what goes into them is not known, with the arguments of which that
// holds, a bit for each. Either they only move elements, or one of their elements can decide alone (False and anything
// is False): all bits off and all bits on in the place of what is not known then give the same.
inline unsigned partly_known(const std::string& name) {
  constexpr unsigned kFirst = 1, kBoth = 3, kSecond = 2, kLastTwoOfThree = 6;
  static const std::unordered_map<std::string, unsigned> names{
      {"aten::bitwise_and", kBoth},   {"aten::bitwise_and_", kBoth},
      {"aten::bitwise_or", kBoth},    {"aten::bitwise_or_", kBoth},
      {"aten::bitwise_not", kFirst},  {"aten::logical_and", kBoth},
      {"aten::logical_and_", kBoth},  {"aten::logical_or", kBoth},
      {"aten::logical_or_", kBoth},   {"aten::logical_not", kFirst},
      {"aten::mul", kBoth},           {"aten::mul_", kBoth},
      {"aten::any", kFirst},          {"aten::all", kFirst},
      {"aten::cat", kFirst},          {"aten::stack", kFirst},
      {"aten::clone", kFirst},        {"aten::copy_", kSecond},
      {"aten::_to_copy", kFirst},     {"aten::repeat", kFirst},
      {"aten::flip", kFirst},         {"aten::roll", kFirst},
      {"aten::index_select", kFirst}, {"aten::index", kFirst},
      {"aten::gather", kFirst},       {"aten::masked_fill", kFirst},
      {"aten::masked_fill_", kFirst}, {"aten::where", kLastTwoOfThree},
  };
  const auto found = names.find(name);
  return found == names.end() ? 0 : found->second;
}

// Whether an operator asks of numbers only whether they are finite, so that every finite one gets the same answer: a
// comparison with itself or with infinity or NaN. torch's isnan, isinf and isfinite are made of these.
inline bool asks_whether_finite(const Operator& op, c10::ArrayRef<const c10::IValue> inputs) {
  if (inputs.empty() || !inputs[0].isTensor() || !inputs[0].toTensor().defined()) return false;
  const at::Tensor& self = inputs[0].toTensor();
  if (!at::isFloatingType(self.scalar_type())) return false;
  if (op.name == "aten::isposinf" || op.name == "aten::isneginf") return true;
  const bool equality = op.name == "aten::eq" || op.name == "aten::ne";
  const bool order = op.name == "aten::lt" || op.name == "aten::le" || op.name == "aten::gt" || op.name == "aten::ge";
  if ((!equality && !order) || inputs.size() < 2) return false;
  if (inputs[1].isDouble()) return !std::isfinite(inputs[1].toDouble());
  return equality && inputs[1].isTensor() && inputs[1].toTensor().is_same(self);
}

inline Operator describe(const char* name, const char* overload) {
  Operator result;
  result.name = name;
  result.overload = overload;
  result.handle = c10::Dispatcher::singleton().findSchema({name, overload});
  if (!result.handle) return result;
  const c10::FunctionSchema& schema = result.handle->schema();
  bool writes = false;
  bool random = result.handle->hasTag(at::Tag::nondeterministic_seeded);
  for (const c10::Argument& argument : schema.arguments()) {
    const bool written = argument.alias_info() && argument.alias_info()->isWrite();
    writes = writes || written;
    random = random || argument.type()->str().find("Generator") != std::string::npos;
    result.written.push_back(written);
    result.overwritten.push_back(argument.is_out() ||
                                 (written && result.written.size() == 1 && overwrites_self(result.name)));
  }
  bool only_views = !schema.returns().empty();
  for (const c10::Argument& returned : schema.returns()) {
    int of = -1;
    if (returned.alias_info()) {
      of = -2;
      for (std::size_t index = 0; index < schema.arguments().size() && of == -2; ++index) {
        const auto* info = schema.arguments()[index].alias_info();
        if (result.written[index] && info->afterSets() == returned.alias_info()->afterSets())
          of = static_cast<int>(index);
      }
    }
    only_views = only_views && of == -2;
    result.argument_of_return.push_back(of);
  }
  result.view_only = only_views && !writes;
  result.makes_memory = makes_memory(result.name);
  // Only torch's own operators are certain to do the same on every device.
  result.computable = result.name.starts_with("aten::") && !random && !result.makes_memory;
  result.partly = partly_known(result.name);
  result.counts = result.name == "aten::nonzero";
  return result;
}

// The operator that a callback is about.
inline const Operator& find_operator(const at::RecordFunction& function) {
  thread_local std::unordered_map<const char*, Operator> known;
  // The name lies in the operator's schema, so its address tells overloads apart.
  const char* const name = function.name();
  const char* const overload = function.overload_name();
  Operator& found = known[name];
  if (found.name != name || found.overload != overload) found = describe(name, overload);
  return found;
}

}  // namespace poolalloc::simvalues
