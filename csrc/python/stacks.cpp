// Where a Python program is when it allocates, as numbers of stacks in a recording: its frames, if they are wanted, and
// outermost the scope that it says it is in, as a function in the file "<scope>".
//
// A frame is a code object and a place in it; a stack that was seen before costs a walk and a lookup. Lines and names
// are asked for once per stack. Everything here happens under the interpreter's lock, which guards the table too.
#include <algorithm>
#include <array>
#include <atomic>
#include <span>
#include <unordered_map>
#include <vector>

#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

constexpr std::size_t kMostFrames = 64;         // the innermost ones
constexpr std::size_t kMostStacks = 1'000'000;  // a program that makes more of them gets no further numbers

struct Place {
  PyCodeObject* code;  // null: a scope
  int at;              // its number; or instruction, or line where the interpreter says no more
  bool operator==(const Place&) const = default;
};
using Stack = std::span<const Place>;

struct Hash {
  using is_transparent = void;
  std::size_t operator()(Stack stack) const {
    std::size_t hash = stack.size();
    for (const Place& place : stack)
      hash =
          (hash ^ reinterpret_cast<std::uintptr_t>(place.code) ^ static_cast<unsigned>(place.at)) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 32;
  }
};
struct Equal {
  using is_transparent = void;
  bool operator()(Stack a, Stack b) const { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }
};

// Holds its code objects, so that none becomes another at the same address.
struct Table {
  const EventLog* log = nullptr;
  std::unordered_map<std::vector<Place>, std::uint32_t, Hash, Equal> numbers;
};
Table& table() {
  static auto* const table = new Table;  // threads of the program may outlive static objects
  return *table;
}

int place_in(PyFrameObject* frame) {
#if PY_VERSION_HEX >= 0x030B0000
  return PyFrame_GetLasti(frame);
#else
  return PyFrame_GetLineNumber(frame);
#endif
}

int line_of(const Place& place) {
#if PY_VERSION_HEX >= 0x030B0000
  return PyCode_Addr2Line(place.code, place.at);
#else
  return place.at;
#endif
}

using Places = std::array<Place, kMostFrames + 1>;

// Fills `places`, innermost first. The frames live as long as they run, so their code objects do.
std::size_t walk(Places& places) {
  std::size_t count = 0;
  py::object frame = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(PyEval_GetFrame()));
  while (frame && count < kMostFrames) {
    auto* const raw = reinterpret_cast<PyFrameObject*>(frame.ptr());
    PyCodeObject* const code = PyFrame_GetCode(raw);
    Py_DECREF(code);
    places[count++] = {code, place_in(raw)};
    frame = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(PyFrame_GetBack(raw)));
  }
  return count;
}

std::string text_of(Stack stack) {
  py::list frames;
  for (const Place& place : stack) {
    if (place.code == nullptr) {
      frames.append(py::make_tuple("<scope>", scope_name(static_cast<std::uint32_t>(place.at)), 0));
      continue;
    }
    const py::handle code(reinterpret_cast<PyObject*>(place.code));
    const char* const name = py::hasattr(code, "co_qualname") ? "co_qualname" : "co_name";
    frames.append(py::make_tuple(code.attr("co_filename"), code.attr(name), std::max(line_of(place), 0)));
  }
  return py::module_::import("json").attr("dumps")(frames).cast<std::string>();
}

std::uint32_t number_of_stack(EventLog& log, bool with_frames) {
  if (Py_IsInitialized() == 0) return 0;
  const py::gil_scoped_acquire locked;
  const py::error_scope others;  // torch may have an error under way on this thread
  try {
    Places places;
    std::size_t count = with_frames ? walk(places) : 0;
    if (const auto scope = scope_here(); scope != 0) places[count++] = {nullptr, static_cast<int>(scope)};
    const Stack stack(places.data(), count);
    if (stack.empty()) return 0;
    if (table().log != &log) forget_python_stacks(), table().log = &log;
    auto& numbers = table().numbers;
    if (const auto found = numbers.find(stack); found != numbers.end()) return found->second;
    if (numbers.size() == kMostStacks) return 0;
    const std::uint32_t number = log.add_stack(text_of(stack));
    for (const Place& place : stack) Py_XINCREF(place.code);
    numbers.emplace(std::vector<Place>(stack.begin(), stack.end()), number);
    return number;
  } catch (py::error_already_set&) {
    return 0;  // no memory for a few names: the allocation matters more
  }
}

}  // namespace

StackSource python_stacks(bool with_frames) {
  static constexpr std::atomic<bool> kAlways{true};
  if (with_frames) return {[](EventLog& log) { return number_of_stack(log, true); }, &kAlways};
  return {[](EventLog& log) { return scope_here() != 0 ? number_of_stack(log, false) : 0; }, &any_scope()};
}

void forget_python_stacks() {
  const auto numbers = std::exchange(table().numbers, {});
  table().log = nullptr;
  for (const auto& [stack, number] : numbers)
    for (const Place& place : stack) Py_XDECREF(place.code);
}

}  // namespace poolalloc::python
