// Offline placement for Python, arrays in, offsets out; and plans made of it, on their way to the allocator.
#include <pybind11/numpy.h>

#include <cmath>

#include "core/base/errors.h"
#include "core/plans/offline_placement.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

py::dict place(const Array<std::int64_t>& births, const Array<std::int64_t>& deaths, const Array<std::uint64_t>& sizes,
               const Array<std::int64_t>& groups, double seconds, std::uint64_t seed, Bytes enough) {
  if (births.ndim() != 1 || deaths.ndim() != 1 || sizes.ndim() != 1 || groups.ndim() != 1 ||
      births.size() != sizes.size() || deaths.size() != sizes.size() || groups.size() != sizes.size())
    throw UsageError("births, deaths, sizes and groups must be arrays of one length");
  if (!(seconds >= 0 && seconds < 1e9)) throw UsageError("seconds must be at least 0");
  std::vector<Lifetime> lifetimes(static_cast<std::size_t>(sizes.size()));
  for (std::size_t i = 0; i < lifetimes.size(); ++i)
    lifetimes[i] = {births.data()[i], deaths.data()[i], sizes.data()[i], groups.data()[i]};
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

std::optional<Plan> plan_from(const py::object& plan) {
  if (plan.is_none()) return std::nullopt;
  const auto given = plan.cast<py::dict>();
  Plan result;
  result.above = given["above"].cast<Bytes>();
  for (const py::handle each : given["parts"]) {
    const auto part = each.cast<py::dict>();
    const auto sizes = part["sizes"].cast<Array<Bytes>>();
    const auto offsets = part["offsets"].cast<Array<Bytes>>();
    if (sizes.ndim() != 1 || offsets.ndim() != 1 || sizes.size() != offsets.size())
      throw UsageError("a plan's sizes and offsets must be arrays of one length");
    StreamPlan& stream = result.streams.emplace_back();
    stream.device = part["device"].cast<DeviceIndex>();
    stream.stream = part["stream"].cast<std::uint32_t>();
    stream.first = part["first"].cast<std::uint32_t>();
    stream.period = part["period"].cast<std::uint32_t>();
    stream.height = part["height"].cast<Bytes>();
    for (py::ssize_t i = 0; i < sizes.size(); ++i) stream.requests.push_back({sizes.data()[i], offsets.data()[i]});
  }
  return result;
}

void bind_placement(py::module_& module) {
  module.def("place_offline", &place, py::arg("births"), py::arg("deaths"), py::arg("sizes"), py::arg("groups"),
             py::arg("seconds") = 1.0, py::arg("seed") = 1, py::arg("enough") = 0);
}

}  // namespace poolalloc::python
