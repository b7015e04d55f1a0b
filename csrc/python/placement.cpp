// Offline placement for Python: arrays in, offsets out.
#include <pybind11/numpy.h>

#include <cmath>

#include "core/errors.h"
#include "core/offline_placement.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

py::dict place(const Array<std::int64_t>& births, const Array<std::int64_t>& deaths, const Array<std::uint64_t>& sizes,
               double seconds, std::uint64_t seed, Bytes enough) {
  if (births.ndim() != 1 || deaths.ndim() != 1 || sizes.ndim() != 1 || births.size() != sizes.size() ||
      deaths.size() != sizes.size())
    throw UsageError("births, deaths and sizes must be arrays of one length");
  if (!(seconds >= 0 && seconds < 1e9)) throw UsageError("seconds must be at least 0");
  std::vector<Lifetime> lifetimes(static_cast<std::size_t>(sizes.size()));
  for (std::size_t i = 0; i < lifetimes.size(); ++i)
    lifetimes[i] = {births.data()[i], deaths.data()[i], sizes.data()[i]};
  PlacementEffort effort;
  effort.time = std::chrono::nanoseconds(static_cast<std::int64_t>(seconds * 1e9));
  effort.seed = seed;
  effort.enough = enough;
  OfflinePlacement placement;
  {
    const py::gil_scoped_release unlocked;
    placement = place_offline(lifetimes, effort);
  }
  py::dict result;
  result["offsets"] =
      py::array_t<std::uint64_t>(static_cast<py::ssize_t>(placement.offsets.size()), placement.offsets.data());
  result["height"] = placement.height;
  result["load"] = placement.load;
  result["method"] = placement.method;
  return result;
}

}  // namespace

void bind_placement(py::module_& module) {
  module.def("place_offline", &place, py::arg("births"), py::arg("deaths"), py::arg("sizes"), py::arg("seconds") = 1.0,
             py::arg("seed") = 1, py::arg("enough") = 0);
}

}  // namespace poolalloc::python
