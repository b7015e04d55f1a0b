// Core's exceptions become the classes of poolalloc.errors, looked up when they are needed: errors.py imports nothing.
#include "core/base/errors.h"

#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

void raise(const char* name, const std::exception& error) {
  const py::object type = py::module_::import("poolalloc.errors").attr(name);
  PyErr_SetString(type.ptr(), error.what());
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const OutOfMemory& error) {
      raise("OutOfMemoryError", error);
    } catch (const DriverError& error) {
      raise("DriverError", error);
    } catch (const UsageError& error) {
      raise("UsageError", error);
    } catch (const ConfigError& error) {
      raise("ConfigError", error);
    } catch (const InvariantViolation& error) {
      raise("InvariantViolation", error);
    }
  });
}

}  // namespace poolalloc::python
