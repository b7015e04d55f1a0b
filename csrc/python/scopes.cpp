// Which scope each thread's Python program says it is in (poolalloc/scopes.py). A recording names it with every
// allocation: stacks.cpp.
//
// Names have numbers, guarded by the interpreter's lock. A thread's own scope is guarded by nothing: only the thread
// looks at it. What a hook of a backward pass says holds until that pass is over, since torch's threads go on to others
// and nothing tells them that one has ended.
#include <atomic>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

constexpr std::size_t kMostNames = 1'000'000;  // a program that makes more of them, one a request say, gets no further

// They stay: threads may be in them. Number 0 is no scope.
struct Names {
  std::vector<std::string> texts{""};
  std::unordered_map<std::string, std::uint32_t> numbers{{"", 0}};
};
Names& names() {
  static auto* const names = new Names;  // threads of the program may outlive static objects
  return *names;
}

struct Here {
  std::uint32_t scope = 0;
  std::uint32_t pass = 0;     // the backward pass that this is said in; 0: said until it is taken back
  std::uint32_t beneath = 0;  // the scope to be in when that pass is over
};
constinit thread_local Here here;
constinit std::atomic<std::uint32_t> pass{1};
constinit std::atomic<bool> named{false};

bool over(const Here& where) { return where.pass != 0 && where.pass != pass.load(std::memory_order_relaxed); }

using Where = std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>;  // to Python nothing but what brings it back

std::uint32_t number_of(const std::string& name) {
  auto& [texts, numbers] = names();
  if (const auto found = numbers.find(name); found != numbers.end()) return found->second;
  if (texts.size() == kMostNames) return 0;
  named.store(true, std::memory_order_relaxed);
  texts.push_back(name);
  return numbers.emplace(name, static_cast<std::uint32_t>(texts.size() - 1)).first->second;
}

Where enter(std::uint32_t scope) {
  const Here before = std::exchange(here, Here{scope, 0, 0});
  return {before.scope, before.pass, before.beneath};
}

void return_to(const Where& where) { here = {std::get<0>(where), std::get<1>(where), std::get<2>(where)}; }

std::uint32_t enter_in_pass(std::uint32_t scope) {
  const std::uint32_t beneath = here.pass != 0 ? here.beneath : here.scope;
  here = {scope, pass.load(std::memory_order_relaxed), beneath};
  return here.pass;
}

void end_pass() {
  if (++pass == 0) ++pass;
}

}  // namespace

std::uint32_t scope_here() { return over(here) ? here.beneath : here.scope; }

const std::atomic<bool>& any_scope() { return named; }

const std::string& scope_name(std::uint32_t scope) { return names().texts.at(scope); }

void bind_scopes(py::module_& module) {
  module.def("scope_number", number_of, py::arg("name"), "The number of the scope of this name; 0 is none.");
  module.def("enter_scope", enter, py::arg("scope"),
             "The calling thread is in this scope now. Returns what brings it back to where it was.");
  module.def("return_to_scope", return_to, py::arg("where"), "What enter_scope returned.");
  module.def("enter_scope_in_pass", enter_in_pass, py::arg("scope"),
             "The same until the backward pass is over. Returns the number of this pass.");
  module.def("end_pass", end_pass, "A backward pass is over.");
  module.def("scope_number_here", scope_here, "The number of the calling thread's scope.");
  module.def("scope_here", [] { return scope_name(scope_here()); }, "The calling thread's scope, or ''.");
}

}  // namespace poolalloc::python
