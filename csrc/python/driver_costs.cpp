// What the calls of a device's driver take: timed one by one on a real device, for the tables of costs with which
// replays are priced (poolalloc/_internal/price_lists.py). Needs 128 MiB of the device's memory for a moment.
#include <chrono>
#include <map>

#include "core/streams/capture.h"
#include "driver/cuda_driver.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

using Times = std::map<std::string, std::map<std::string, std::vector<double>>>;  // kind, of what: microseconds

class Stopwatch {
 public:
  Stopwatch(CudaDriver& driver, std::string of, Times& times) : driver_(driver), of_(std::move(of)), times_(times) {}

  // Times one call, `parts` of whatever it does; throws unless it succeeds.
  template <typename Call>
  void operator()(DriverCall kind, Call call, int parts = 1) {
    const auto begin = std::chrono::steady_clock::now();
    const Status status = call();
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - begin;
    if (status != Status::ok)
      throw std::runtime_error(std::string(driver_call_name(kind)) + " failed: " + driver_.last_error());
    times_[driver_call_name(kind)][of_].push_back(taken.count() / parts);
  }

 private:
  CudaDriver& driver_;
  const std::string of_;
  Times& times_;
};

// `handles` pieces of `bytes` are created, mapped side by side and let go. Access is granted one by one, or for all of
// them at once, as an allocator does for a block.
void time_pages(CudaDriver& driver, DeviceIndex device, Bytes bytes, int handles, bool at_once, Times& times) {
  const std::string of = format_bytes(bytes);
  Stopwatch timed(driver, of, times);
  Stopwatch together(driver, of + ", " + std::to_string(handles) + " handles in a call", times);
  const Bytes all = bytes * static_cast<Bytes>(handles);
  const auto at = [bytes](Address base, int i) { return base + bytes * static_cast<Bytes>(i); };
  Address base = 0;
  std::vector<PhysicalHandle> made(static_cast<std::size_t>(handles));
  if (driver.reserve(device, all, kPageBytes, &base) != Status::ok) throw std::runtime_error(driver.last_error());
  for (PhysicalHandle& handle : made) timed(DriverCall::create, [&] { return driver.create(device, bytes, &handle); });
  for (int i = 0; i < handles; ++i)
    timed(DriverCall::map, [&] { return driver.map(device, at(base, i), bytes, made[static_cast<std::size_t>(i)]); });
  if (at_once) {
    together(DriverCall::allow_access, [&] { return driver.allow_access(device, base, all); }, handles);
  } else {
    for (int i = 0; i < handles; ++i)
      timed(DriverCall::allow_access, [&] { return driver.allow_access(device, at(base, i), bytes); });
  }
  for (int i = 0; i < handles; ++i) timed(DriverCall::unmap, [&] { return driver.unmap(device, at(base, i), bytes); });
  for (const PhysicalHandle handle : made) timed(DriverCall::destroy, [&] { return driver.destroy(device, handle); });
  if (driver.release(device, base, all) != Status::ok) throw std::runtime_error(driver.last_error());
}

// One more mapping of memory that is mapped already, as pages get them that serve another address.
void time_alias(CudaDriver& driver, DeviceIndex device, Bytes bytes, Times& times) {
  Stopwatch timed(driver, format_bytes(bytes) + ", mapped elsewhere too", times);
  Address base = 0;
  PhysicalHandle handle = 0;
  if (driver.reserve(device, 2 * bytes, kPageBytes, &base) != Status::ok ||
      driver.create(device, bytes, &handle) != Status::ok || driver.map(device, base, bytes, handle) != Status::ok ||
      driver.allow_access(device, base, bytes) != Status::ok)
    throw std::runtime_error(driver.last_error());
  timed(DriverCall::map, [&] { return driver.map(device, base + bytes, bytes, handle); });
  timed(DriverCall::allow_access, [&] { return driver.allow_access(device, base + bytes, bytes); });
  timed(DriverCall::unmap, [&] { return driver.unmap(device, base + bytes, bytes); });
  if (driver.unmap(device, base, bytes) != Status::ok || driver.destroy(device, handle) != Status::ok ||
      driver.release(device, base, 2 * bytes) != Status::ok)
    throw std::runtime_error(driver.last_error());
}

// A range that the driver does not have is left out.
void time_range(CudaDriver& driver, DeviceIndex device, Bytes bytes, Times& times) {
  Stopwatch timed(driver, format_bytes(bytes), times);
  Address base = 0;
  if (driver.reserve(device, bytes, kPageBytes, &base) != Status::ok ||
      driver.release(device, base, bytes) != Status::ok)
    return;
  timed(DriverCall::reserve, [&] { return driver.reserve(device, bytes, kPageBytes, &base); });
  timed(DriverCall::release, [&] { return driver.release(device, base, bytes); });
}

void time_segment(CudaDriver& driver, DeviceIndex device, Bytes bytes, Times& times) {
  Stopwatch timed(driver, format_bytes(bytes), times);
  Address address = 0;
  timed(DriverCall::allocate_segment, [&] { return driver.allocate_segment(device, bytes, &address); });
  timed(DriverCall::free_segment, [&] { return driver.free_segment(device, address); });
}

// What an allocator asks of a stream now and then.
void time_events(CudaDriver& driver, DeviceIndex device, Times& times) {
  Stopwatch timed(driver, "the default stream", times);
  EventHandle event = 0;
  Bytes free = 0, total = 0;
  timed(DriverCall::create_event, [&] { return driver.create_event(device, &event); });
  timed(DriverCall::record_event, [&] { return driver.record_event(device, event, 0); });
  timed(DriverCall::query_event, [&] {
    const Status status = driver.query_event(MayAsk::unchecked(), device, event);
    return status == Status::not_ready ? Status::ok : status;
  });
  timed(DriverCall::destroy_event, [&] { return driver.destroy_event(device, event); });
  timed(DriverCall::memory_info, [&] { return driver.memory_info(device, &free, &total); });
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
        time_pages(driver, device, kPageBytes, 32, round % 2 != 0, kept);
        time_pages(driver, device, 10 * kPageBytes, 4, round % 2 != 0, kept);
        time_alias(driver, device, kPageBytes, kept);
        time_range(driver, device, 64 * kPageBytes, kept);
        time_range(driver, device, 8 * round_up(info.total_bytes, kPageBytes), kept);
      }
      time_segment(driver, device, 2 * kPageBytes, kept);
      time_segment(driver, device, 64 * kPageBytes, kept);
      time_events(driver, device, kept);
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
             "Microseconds that each call of the driver took, by kind and by what it was about, and the device's name. "
             "Works in the device's primary context; holds up to 128 MiB of it for a moment.");
}

}  // namespace poolalloc::python
