// Python callables in the out-of-memory ladder.
#include <memory>
#include <utility>

#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {

OomCallbacks::Callback oom_callback_of(py::function callable) {
  // The last copy may go on any thread.
  const std::shared_ptr<py::function> shared(new py::function(std::move(callable)), [](py::function* function) {
    const py::gil_scoped_acquire locked;
    delete function;
  });
  return [shared](DeviceIndex device, Bytes bytes) {
    const py::gil_scoped_acquire locked;
    // torch may have an error under way on this thread: an allocation in the middle of it must not lose it.
    const py::error_scope others;
    try {
      return static_cast<bool>(py::bool_((*shared)(device, bytes)));
    } catch (py::error_already_set& error) {
      const bool interrupt = error.matches(PyExc_KeyboardInterrupt);
      error.discard_as_unraisable(*shared);
      if (interrupt) PyErr_SetInterrupt();  // the program hears of it where it can
      return false;
    }
  };
}

}  // namespace poolalloc::python
