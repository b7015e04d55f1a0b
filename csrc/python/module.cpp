// Assembles poolalloc._core; poolalloc/_core.pyi describes it and tests/core/test_core_api.py compares the two.
#include "python/bindings.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "poolalloc's native part: options, the allocator torch uses, and an allocator over a modelled device.";
  module.attr("HEADERS_DIGEST") = POOLALLOC_HEADERS_DIGEST;
  poolalloc::python::bind_errors(module);
  poolalloc::python::bind_values(module);
  poolalloc::python::bind_plugin(module);
  poolalloc::python::bind_regions(module);
  poolalloc::python::bind_scopes(module);
  poolalloc::python::bind_engine(module);
  poolalloc::python::bind_replay(module);
  poolalloc::python::bind_placement(module);
  poolalloc::python::bind_driver_costs(module);
}
