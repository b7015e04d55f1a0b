// The allocator that torch uses in this process, and a look at the devices without torch.
#include "plugin/plugin.h"

#include <dlfcn.h>

#include "driver/cuda_driver.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

// The file that holds the plugin: what CUDAPluggableAllocator has to load, so that both see one allocator.
std::string library_path() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&poolalloc_malloc), &info) == 0 || info.dli_fname == nullptr)
    throw std::runtime_error("the loader does not know where libpoolalloc.so came from");
  return info.dli_fname;
}

py::dict hook_addresses() {
  py::dict result;
#define X(setter, function) result[#setter] = reinterpret_cast<std::uintptr_t>(&function);
  POOLALLOC_TORCH_HOOKS(X)
#undef X
  return result;
}

py::dict state_dict() {
  const PluginState state = plugin_state();
  py::dict calls;
#define X(setter, function) calls[#setter] = state.function;
  POOLALLOC_TORCH_HOOKS(X)
#undef X
  py::dict result;
  result["configured"] = state.configured;
  result["used"] = state.used;
  result["forked"] = state.forked;
  result["hook_calls"] = calls;
  result["failures"] = state.failures;
  result["last_failure"] = state.last_failure;
  return result;
}

py::dict device_stats(DeviceIndex device) {
  DeviceStats stats;
  {
    py::gil_scoped_release unlocked;
    stats = plugin_allocator().stats(device);
  }
  return to_dict(stats);
}

py::object base_allocation(Address address) {
  Bytes bytes = 0;
  const Address base = plugin_allocator().base_allocation(address, &bytes);
  if (base == 0) return py::none();
  return py::make_tuple(base, bytes);
}

py::dict probe_devices() {
  py::list devices;
  std::string problem;
  const bool available = CudaDriver::available(&problem);
  CudaDriver driver;
  const int count = available ? driver.device_count() : 0;
  for (int device = 0; device < count; ++device) {
    DeviceInfo info;
    if (const bool used = driver.in_use(device);
        (used ? driver.open_device(device, &info) : driver.device_info(device, &info)) != Status::ok) {
      problem = driver.last_error();
      continue;
    }
    // What is free only a context tells, and opening one would take memory of a device that nobody uses here.
    Bytes free_bytes = 0;
    Bytes total_bytes = 0;
    const bool told = driver.in_use(device) && driver.memory_info(device, &free_bytes, &total_bytes) == Status::ok;
    py::dict row;
    row["device"] = device;
    row["name"] = info.name;
    row["total_bytes"] = told ? total_bytes : info.total_bytes;
    row["free_bytes"] = told ? py::object(py::int_(free_bytes)) : py::object(py::none());
    row["virtual_memory"] = info.virtual_memory;
    row["fault"] = info.fault;
    row["granularity"] = info.granularity;
    devices.append(row);
  }
  py::dict result;
  result["devices"] = devices;
  result["problem"] = problem;
  return result;
}

}  // namespace

void bind_plugin(py::module_& module) {
  module.def("library_path", &library_path, "The path of libpoolalloc.so.");
  module.def("hook_addresses", &hook_addresses, "The functions for the setters of torch's pluggable allocator.");
  module.def(
      "configure",
      [](const std::string& conf, const py::object& plan) {
        const std::optional<Plan> given = plan_from(plan);
        configure_plugin(options_from(conf), given ? &*given : nullptr);
      },
      py::arg("conf"), py::arg("plan") = py::none(),
      "Fixes the options of the process's allocator, and its plan. The same again are accepted.");
  module.def("plugin_state", &state_dict, "What the door to torch has seen: configured, used, hook_calls, failures.");
  module.def("probe_devices", &probe_devices,
             "The devices that the CUDA driver shows, without torch and without opening any.");

  module.def("devices", [] { return plugin_allocator().devices(); }, "The devices this process has used.");
  module.def("stats", &device_stats, py::arg("device"), "Statistics of one device, by the names of the manual.");
  module.def(
      "reset_peak_stats", [](DeviceIndex device) { plugin_allocator().reset_peak_stats(device); }, py::arg("device"),
      Unlocked(), "Peaks start again from what is current.");
  module.def(
      "empty_cache", [] { return plugin_allocator().empty_cache(); }, Unlocked(),
      "Gives idle pages back to the driver. Returns the bytes given back.");
  module.def(
      "trim", [](Bytes target, DeviceIndex device, bool wait) { return plugin_allocator().trim(target, device, wait); },
      py::arg("target"), py::arg("device"), py::arg("wait"), Unlocked(),
      "Gives idle pages of a device back until at most `target` bytes are held. Returns the bytes given back.");
  module.def(
      "set_memory_limit", [](Bytes bytes, DeviceIndex device) { plugin_allocator().set_memory_limit(bytes, device); },
      py::arg("bytes"), py::arg("device"), Unlocked(),
      "At most so many bytes of the device's memory; 0: no such limit.");
  module.def(
      "memory_limit", [](DeviceIndex device) { return plugin_allocator().memory_limit(device); }, py::arg("device"),
      "The bytes of the device's memory that may be held; 0: no such limit.");
  module.def(
      "on_oom", [](py::function callback) { return plugin_oom_callbacks().add(oom_callback_of(std::move(callback))); },
      py::arg("callback"), "callback(device, bytes) is asked for memory. Returns what remove_on_oom takes.");
  module.def(
      "remove_on_oom", [](OomCallbacks::Id id) { return plugin_oom_callbacks().remove(id); }, py::arg("id"), Unlocked(),
      "False if there is no such callback.");
  module.def(
      "set_memory_fraction",
      [](double fraction, DeviceIndex device) { plugin_allocator().set_memory_fraction(fraction, device); },
      py::arg("fraction"), py::arg("device"), Unlocked(), "At most this fraction of the device's memory.");
  module.def(
      "memory_fraction", [](DeviceIndex device) { return plugin_allocator().memory_fraction(device); },
      py::arg("device"), "The fraction of the device's memory that may be held.");
  module.def("base_allocation", &base_allocation, py::arg("address"),
             "The start and rounded size of the block that contains the address, or None.");
  module.def(
      "start_recording",
      [](const std::string& path, const std::string& header, bool stacks) {
        plugin_allocator().start_log(path, header, python_stacks(stacks));
      },
      py::arg("path"), py::arg("header"), py::arg("stacks"), Unlocked(),
      "Everything asked of the allocator goes to a file from now on, with its scope, and Python's frames if wanted.");
  module.def(
      "stop_recording",
      [] {
        std::uint64_t events = 0;
        {
          const py::gil_scoped_release unlocked;
          events = plugin_allocator().stop_log();
        }
        forget_python_stacks();
        return events;
      },
      "Ends the recording. Returns the number of its events.");
  module.def(
      "mark_recording", [](const std::string& text) { plugin_allocator().mark(text); }, py::arg("text"), Unlocked(),
      "Where the program is, in the recording's words.");
  module.def(
      "validate", [] { plugin_allocator().validate(); }, Unlocked(),
      "Checks every equation of every structure. Raises InvariantViolation.");
}

}  // namespace poolalloc::python
