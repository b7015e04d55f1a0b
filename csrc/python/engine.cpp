// Engine: core's allocator over ModelDriver, with the controls of both. For tests, replay and tuning without a GPU.
#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "driver/model_driver.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;
using Pool = std::pair<std::uint64_t, std::uint64_t>;

PoolId id_of(Pool pool) { return {pool.first, pool.second}; }

DriverCall call_named(const std::string& name) {
  std::string known;
  for (std::size_t i = 0; i < kDriverCallKinds; ++i) {
    if (name == kDriverCallNames[i]) return static_cast<DriverCall>(i);
    known.append(i == 0 ? "" : ", ").append(kDriverCallNames[i]);
  }
  throw UsageError("no driver call is named \"" + name + "\"; there are: " + known);
}

Status status_named(const std::string& name) {
  static const std::array<std::pair<const char*, Status>, 5> statuses{{{"ok", Status::ok},
                                                                       {"out_of_memory", Status::out_of_memory},
                                                                       {"not_ready", Status::not_ready},
                                                                       {"not_supported", Status::not_supported},
                                                                       {"failed", Status::failed}}};
  for (const auto& [known, status] : statuses)
    if (name == known) return status;
  throw UsageError("no status is named \"" + name +
                   "\"; there are: ok, out_of_memory, not_ready, not_supported, failed");
}

ModelOptions model_from(const py::dict& model) {
  ModelOptions options;
  for (const auto& [key, value] : model) {
    const auto name = key.cast<std::string>();
    if (name == "devices")
      options.devices = value.cast<int>();
    else if (name == "memory_bytes")
      options.memory_bytes = value.cast<Bytes>();
    else if (name == "granularity")
      options.granularity = value.cast<Bytes>();
    else if (name == "virtual_memory")
      options.virtual_memory = value.cast<bool>();
    else if (name == "event_lag")
      options.event_lag = value.cast<std::uint64_t>();
    else
      throw ConfigError("unknown option \"" + name +
                        "\" of the model; known: devices, memory_bytes, granularity, virtual_memory, event_lag");
  }
  return options;
}

struct Engine {
  Engine(const std::string& conf, const py::dict& model, const py::object& plan)
      : Engine(conf, model, plan_from(plan)) {}
  Engine(const std::string& conf, const py::dict& model, const std::optional<Plan>& plan)
      : driver(model_from(model)), allocator(driver, options_from(conf), plan ? &*plan : nullptr) {}

  py::object base_allocation(Address address) const {
    Bytes bytes = 0;
    const Address base = allocator.base_allocation(address, &bytes);
    if (base == 0) return py::none();
    return py::make_tuple(base, bytes);
  }

  // Requests on one of `streams`, or on any when it is None, come from the pool.
  void begin_allocate_to_pool(DeviceIndex device, Pool pool, std::optional<std::vector<StreamId>> streams,
                              bool suspect) {
    const auto filter = [streams = std::move(streams)](StreamId stream) {
      return !streams || std::find(streams->begin(), streams->end(), stream) != streams->end();
    };
    allocator.begin_allocate_to_pool(device, id_of(pool), filter, suspect);
  }

  py::object physical(Address address, DeviceIndex device) const {
    PhysicalHandle handle = 0;
    Bytes offset = 0;
    if (!driver.physical(device, address, &handle, &offset)) return py::none();
    return py::make_tuple(handle, offset);
  }

  ModelDriver driver;  // before the allocator, which uses it until its end
  Allocator allocator;
};

void bind_allocator(py::class_<Engine>& engine) {
  engine
      .def(
          "allocate",
          [](Engine& self, Bytes bytes, DeviceIndex device, StreamId stream) {
            return self.allocator.allocate(bytes, device, stream);
          },
          py::arg("bytes"), py::arg("device") = 0, py::arg("stream") = 0, Unlocked(),
          "The address of a new block; 0 for 0 bytes.")
      .def(
          "free", [](Engine& self, Address address) { self.allocator.free(address); }, py::arg("address"), Unlocked())
      .def(
          "record_stream",
          [](Engine& self, Address address, StreamId stream, std::optional<DeviceIndex> device) {
            const auto block = self.allocator.block(address);
            self.allocator.record_stream(address, {device.value_or(block ? block->device : 0), stream});
          },
          py::arg("address"), py::arg("stream"), py::arg("device") = py::none(), Unlocked(),
          "A stream uses the block, of the block's device if no other is named.")
      .def("base_allocation", &Engine::base_allocation, py::arg("address"),
           "The start and rounded size of the block that contains the address, or None.")
      .def(
          "owns", [](const Engine& self, Address address) { return self.allocator.owns(address); }, py::arg("address"))
      .def(
          "empty_cache", [](Engine& self) { return self.allocator.empty_cache(); }, Unlocked(),
          "Gives idle pages back to the model. Returns the bytes given back.")
      .def(
          "trim",
          [](Engine& self, Bytes target, DeviceIndex device, bool wait) {
            return self.allocator.trim(target, device, wait);
          },
          py::arg("target") = 0, py::arg("device") = 0, py::arg("wait") = false, Unlocked(),
          "Gives idle pages back until at most `target` bytes are held. Returns the bytes given back.")
      .def(
          "set_memory_limit",
          [](Engine& self, Bytes bytes, DeviceIndex device) { self.allocator.set_memory_limit(bytes, device); },
          py::arg("bytes"), py::arg("device") = 0, Unlocked())
      .def(
          "memory_limit", [](const Engine& self, DeviceIndex device) { return self.allocator.memory_limit(device); },
          py::arg("device") = 0)
      .def(
          "on_oom",
          [](Engine& self, py::function callback) {
            return self.allocator.oom_callbacks().add(oom_callback_of(std::move(callback)));
          },
          py::arg("callback"), "callback(device, bytes) is asked for memory. Returns what remove_on_oom takes.")
      .def(
          "remove_on_oom",
          [](Engine& self, OomCallbacks::Id id) {
            py::gil_scoped_release unlocked;
            return self.allocator.oom_callbacks().remove(id);
          },
          py::arg("id"))
      .def(
          "want_segments", [](Engine& self, bool wanted) { self.allocator.want_segments(wanted); },
          pybind11::arg("wanted"))
      .def(
          "set_memory_fraction",
          [](Engine& self, double fraction, DeviceIndex device) {
            self.allocator.set_memory_fraction(fraction, device);
          },
          py::arg("fraction"), py::arg("device") = 0, Unlocked())
      .def(
          "memory_fraction",
          [](const Engine& self, DeviceIndex device) { return self.allocator.memory_fraction(device); },
          py::arg("device") = 0)
      .def("begin_allocate_to_pool", &Engine::begin_allocate_to_pool, py::arg("device"), py::arg("pool"),
           py::arg("streams") = py::none(), py::arg("suspect") = false, Unlocked(),
           "Requests on these streams (None: on all) come from the pool. `suspect`: captures are not announced.")
      .def(
          "end_allocate_to_pool",
          [](Engine& self, DeviceIndex device, Pool pool) { self.allocator.end_allocate_to_pool(device, id_of(pool)); },
          py::arg("device"), py::arg("pool"), Unlocked())
      .def(
          "expect_graphs",
          [](Engine& self, DeviceIndex device, Pool pool) { self.allocator.expect_graphs(device, id_of(pool)); },
          py::arg("device"), py::arg("pool"), Unlocked(),
          "Graphs may touch what is idle in the pool, though no capture was seen.")
      .def(
          "release_pool",
          [](Engine& self, DeviceIndex device, Pool pool) { self.allocator.release_pool(device, id_of(pool)); },
          py::arg("device"), py::arg("pool"), Unlocked())
      .def(
          "enter_region", [](Engine& self, const std::optional<std::string>& tag) { self.allocator.enter_region(tag); },
          py::arg("tag"), "This thread allocates in the region from now on; None: outside of every region.")
      .def(
          "leave_region", [](Engine& self) { self.allocator.leave_region(); }, "The region entered last ends.")
      .def(
          "sleep",
          [](Engine& self, const std::vector<std::string>& tags, const std::string& keep, const std::string& folder) {
            self.allocator.sleep(tags, keep_from(keep), folder);
          },
          py::arg("tags"), py::arg("keep"), py::arg("folder") = "", Unlocked())
      .def(
          "wake", [](Engine& self, const std::vector<std::string>& tags) { self.allocator.wake(tags); },
          py::arg("tags"), Unlocked())
      .def("regions",
           [](const Engine& self) {
             py::list regions;
             for (const RegionStats& region : self.allocator.regions()) regions.append(to_dict(region));
             return regions;
           })
      .def(
          "set_pool_use_on_oom",
          [](Engine& self, DeviceIndex device, Pool pool, bool use) {
            self.allocator.set_pool_use_on_oom(device, id_of(pool), use);
          },
          py::arg("device"), py::arg("pool"), py::arg("use"), Unlocked(),
          "Whether the idle pages of a pool in use may be taken before memory runs out.")
      .def("devices", [](const Engine& self) { return self.allocator.devices(); })
      .def(
          "stats",
          [](const Engine& self, DeviceIndex device) {
            DeviceStats stats;
            {
              py::gil_scoped_release unlocked;
              stats = self.allocator.stats(device);
            }
            return to_dict(stats);
          },
          py::arg("device") = 0, "Statistics of one device, by the names of the manual.")
      .def(
          "reset_peak_stats", [](Engine& self, DeviceIndex device) { self.allocator.reset_peak_stats(device); },
          py::arg("device") = 0, Unlocked())
      .def("options", [](const Engine& self) { return to_dict(self.allocator.options()); })
      .def(
          "validate", [](const Engine& self) { self.allocator.validate(); }, Unlocked(),
          "Checks every equation of every structure. Raises InvariantViolation.");
}

void bind_model(py::class_<Engine>& engine) {
  engine
      .def(
          "fail",
          [](Engine& self, const std::string& call, std::uint64_t nth, const std::string& status) {
            self.driver.fail(call_named(call), nth, status_named(status));
          },
          py::arg("call"), py::arg("nth") = 1, py::arg("status") = "failed",
          "The nth next driver call of this kind does nothing and returns the status.")
      .def(
          "advance", [](Engine& self, std::uint64_t ticks) { self.driver.advance(ticks); }, py::arg("ticks") = 1,
          "Lets time pass on every device; events whose lag is over complete.")
      .def("failures_waiting", [](const Engine& self) { return self.driver.failures_waiting(); })
      .def(
          "now", [](const Engine& self, DeviceIndex device) { return self.driver.now(device); }, py::arg("device") = 0,
          "The time on a device, in ticks.")
      .def(
          "set_stream_lag",
          [](Engine& self, StreamId stream, std::uint64_t ticks, DeviceIndex device) {
            self.driver.set_stream_lag(device, stream, ticks);
          },
          py::arg("stream"), py::arg("ticks"), py::arg("device") = 0)
      .def(
          "begin_capture",
          [](Engine& self, StreamId stream, DeviceIndex device, bool announced) {
            if (announced) self.allocator.begin_capture(device);
            self.driver.begin_capture(device, stream, announced);
          },
          py::arg("stream"), py::arg("device") = 0, py::arg("announced") = true, Unlocked(),
          "A graph is captured from the stream; `announced`: as torch does it, so that the allocator is told.")
      .def(
          "end_capture",
          [](Engine& self, StreamId stream, DeviceIndex device, bool announced) {
            self.driver.end_capture(device, stream);
            if (announced) self.allocator.end_capture(device);
          },
          py::arg("stream"), py::arg("device") = 0, py::arg("announced") = true, Unlocked())
      .def(
          "used_bytes", [](const Engine& self, DeviceIndex device) { return self.driver.used_bytes(device); },
          py::arg("device") = 0, "Physical bytes the model holds now.")
      .def(
          "peak_used_bytes", [](const Engine& self, DeviceIndex device) { return self.driver.peak_used_bytes(device); },
          py::arg("device") = 0)
      .def("physical", &Engine::physical, py::arg("address"), py::arg("device") = 0,
           "The physical handle and the offset in it that lie under an address, or None.")
      .def("caretaker_rounds", [](const Engine& self) { return self.allocator.caretaker_rounds(); })
      .def("violations", [](const Engine& self) { return self.driver.violations(); })
      .def("first_violation", [](const Engine& self) { return self.driver.first_violation(); });
}

}  // namespace

void bind_engine(py::module_& module) {
  py::class_<Engine> engine(module, "Engine", "An allocator over a device that is only arithmetic.");
  engine.def(py::init<const std::string&, const py::dict&, const py::object&>(), py::arg("conf") = "",
             py::arg("model") = py::dict(), py::arg("plan") = py::none(),
             "conf: \"key:value,key:value\"; model: devices, memory_bytes, granularity, virtual_memory, event_lag; "
             "plan: as poolalloc.analysis.plan hands it over.");
  bind_allocator(engine);
  bind_model(engine);
}

}  // namespace poolalloc::python
