// Replay: a trace made ready to run through core's allocator on a modelled device, any number of times.
#include <pybind11/numpy.h>

#include "python/bindings.h"
#include "python/replay.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

std::unique_ptr<ReplayProgram> compile(const py::buffer& events, const std::vector<StreamId>& streams,
                                       const std::vector<std::pair<std::uint64_t, std::uint64_t>>& pools) {
  const py::buffer_info info = events.request();
  if (info.ndim != 1 || info.itemsize != sizeof(TraceEvent) || (info.size > 1 && info.strides[0] != info.itemsize))
    throw UsageError("events must be one contiguous array of " + std::to_string(sizeof(TraceEvent)) + " bytes each");
  std::vector<PoolId> ids;
  ids.reserve(pools.size());
  for (const auto& [first, second] : pools) ids.push_back({first, second});
  const py::gil_scoped_release unlocked;
  return std::make_unique<ReplayProgram>(static_cast<const TraceEvent*>(info.ptr), static_cast<std::size_t>(info.size),
                                         streams, ids);
}

py::dict run(const ReplayProgram& program, const std::string& conf, Bytes memory_bytes,
             const std::vector<std::uint64_t>& sample_after, bool placements, const py::object& plan) {
  const Options options = options_from(conf);
  const std::optional<Plan> given = plan_from(plan);
  ReplayResult outcome;
  {
    const py::gil_scoped_release unlocked;
    outcome = run_replay(program, options, memory_bytes, sample_after, placements, given ? &*given : nullptr);
  }
  py::dict result;
  result["events"] = outcome.events;
  result["seconds"] = outcome.seconds;
  py::list devices;
  for (const DeviceStats& stats : outcome.devices) devices.append(to_dict(stats));
  result["devices"] = devices;
  py::list samples;
  for (const ReplaySample& sample : outcome.samples) {
    py::dict row;
    row["event"] = sample.event;
    row["device"] = sample.device;
#define X(name) row[#name] = sample.name;
    POOLALLOC_QUANTITIES(X)
#undef X
    row["driver_work"] = sample.driver_work;
    samples.append(row);
  }
  result["samples"] = samples;
  result["placements"] = py::none();
  if (placements)
    result["placements"] =
        py::array_t<Address>(static_cast<py::ssize_t>(outcome.placements.size()), outcome.placements.data());
  result["out_of_memory"] = py::none();
  if (outcome.failure) {
    py::dict failure;
    failure["event"] = outcome.failure->event;
    failure["device"] = outcome.failure->device;
    failure["requested"] = outcome.failure->bytes;
    failure["message"] = outcome.failure->text;
    result["out_of_memory"] = failure;
  }
  return result;
}

}  // namespace

void bind_replay(py::module_& module) {
  py::class_<ReplayProgram>(module, "Replay", "A trace made ready for replay on a device that is only arithmetic.")
      .def(py::init(&compile), py::arg("events"), py::arg("streams"), py::arg("pools"),
           "events: a trace's array of events; streams, pools: its tables.")
      .def("run", &run, py::arg("conf") = "", py::arg("memory_bytes") = Bytes{80} << 30,
           py::arg("sample_after") = std::vector<std::uint64_t>{}, py::arg("placements") = false,
           py::arg("plan") = py::none(),
           "Replays it. Returns events, seconds, devices, samples (after the events of these numbers), out_of_memory,\n"
           "and if asked for placements: the address of each allocation, in their order.")
      .def("info", [](const ReplayProgram& self) {
        py::dict result;
        result["events"] = self.steps.size();
        result["devices"] = self.devices;
        result["places"] = self.places.size();
        result["lanes"] = self.lanes.size();
        result["most_live"] = self.slots;
        result["seconds"] = self.seconds;
        return result;
      });
}

}  // namespace poolalloc::python
