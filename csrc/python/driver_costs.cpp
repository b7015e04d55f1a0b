// What the calls of a device's driver take that give, take or map memory: timed one by one on a real device, for the
// tables of costs with which replays are priced (poolalloc/costs.py). Needs the device's memory to itself for a moment.
#include <chrono>
#include <map>

#include "driver/cuda_driver.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

using Times = std::map<std::string, std::vector<double>>;  // microseconds of each call, by kind

class Stopwatch {
 public:
  Stopwatch(CudaDriver& driver, Times& times) : driver_(driver), times_(times) {}

  // Times one call, `parts` of whatever it does; throws unless it succeeds.
  template <typename Call>
  void operator()(DriverCall kind, Call call, int parts = 1) {
    const auto begin = std::chrono::steady_clock::now();
    const Status status = call();
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - begin;
    if (status != Status::ok)
      throw std::runtime_error(std::string(driver_call_name(kind)) + " failed: " + driver_.last_error());
    times_[driver_call_name(kind)].push_back(taken.count() / parts);
  }

 private:
  CudaDriver& driver_;
  Times& times_;
};

// One round: `handles` pieces of `bytes` are created, mapped side by side and let go. Access is granted one by one in
// even rounds, and for all of them at once, as an allocator does for a block, in odd ones.
void time_pages(CudaDriver& driver, DeviceIndex device, Bytes granularity, Bytes bytes, int handles, bool at_once,
                Times& times) {
  Stopwatch timed(driver, times);
  const Bytes all = bytes * static_cast<Bytes>(handles);
  const auto at = [bytes](Address base, int i) { return base + bytes * static_cast<Bytes>(i); };
  Address base = 0;
  std::vector<PhysicalHandle> made(static_cast<std::size_t>(handles));
  timed(DriverCall::reserve, [&] { return driver.reserve(device, all, granularity, &base); });
  for (PhysicalHandle& handle : made) timed(DriverCall::create, [&] { return driver.create(device, bytes, &handle); });
  for (int i = 0; i < handles; ++i)
    timed(DriverCall::map, [&] { return driver.map(device, at(base, i), bytes, made[static_cast<std::size_t>(i)]); });
  if (at_once) {
    timed(DriverCall::allow_access, [&] { return driver.allow_access(device, base, all); }, handles);
  } else {
    for (int i = 0; i < handles; ++i)
      timed(DriverCall::allow_access, [&] { return driver.allow_access(device, at(base, i), bytes); });
  }
  for (int i = 0; i < handles; ++i) timed(DriverCall::unmap, [&] { return driver.unmap(device, at(base, i), bytes); });
  for (const PhysicalHandle handle : made) timed(DriverCall::destroy, [&] { return driver.destroy(device, handle); });
  timed(DriverCall::release, [&] { return driver.release(device, base, all); });
}

void time_segment(CudaDriver& driver, DeviceIndex device, Bytes bytes, Times& times) {
  Stopwatch timed(driver, times);
  Address address = 0;
  timed(DriverCall::allocate_segment, [&] { return driver.allocate_segment(device, bytes, &address); });
  timed(DriverCall::free_segment, [&] { return driver.free_segment(device, address); });
}

py::dict time_driver_calls(DeviceIndex device, int rounds) {
  if (rounds < 1 || rounds > 100000) throw UsageError("rounds must be 1 to 100000");
  std::string why;
  if (!CudaDriver::available(&why)) throw UsageError(why);
  DeviceInfo info;
  Times times;
  {
    const py::gil_scoped_release unlocked;
    CudaDriver driver;
    if (device < 0 || device >= driver.device_count() || driver.device_info(device, &info) != Status::ok)
      throw UsageError("there is no device " + std::to_string(device));
    Times warming_up;
    for (int round = -1; round < rounds; ++round) {
      Times& kept = round < 0 ? warming_up : times;
      if (info.virtual_memory) {
        time_pages(driver, device, info.granularity, info.granularity, 32, round % 2 != 0, kept);
        time_pages(driver, device, info.granularity, 10 * info.granularity, 4, round % 2 != 0, kept);
      }
      time_segment(driver, device, 2 * info.granularity, kept);
      time_segment(driver, device, 64 * info.granularity, kept);
    }
  }
  py::dict result;
  result["device"] = info.name;
  result["microseconds"] = times;
  return result;
}

}  // namespace

void bind_driver_costs(py::module_& module) {
  module.def("time_driver_calls", &time_driver_calls, py::arg("device") = 0, py::arg("rounds") = 40,
             "Microseconds that each call of the driver took, by kind, and the device's name. Works in the device's "
             "primary context; holds up to 128 MiB of it for a moment.");
}

}  // namespace poolalloc::python
