// Regions of the process's allocator: entered by a thread, listed, put to sleep and woken.
#include <pybind11/stl.h>

#include "core/allocator.h"
#include "core/base/errors.h"
#include "plugin/plugin.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {

Keep keep_from(const std::string& word) {
  if (word == "nothing") return Keep::nothing;
  if (word == "host") return Keep::host;
  if (word == "file") return Keep::file;
  throw UsageError("keep is \"" + word + "\"; it may be \"nothing\", \"host\" or \"file\"");
}

py::dict to_dict(const RegionStats& region) {
  py::dict result;
  result["tag"] = region.tag;
  result["device"] = region.device;
  result["is_asleep"] = region.asleep;
  result["requested"] = region.requested;
  result["resident"] = region.resident;
  result["reserved"] = region.reserved;
  result["asleep"] = region.asleep_bytes;
  result["contents"] = region.contents_bytes;
  result["contents_in"] = region.contents.empty() ? py::object(py::none()) : py::object(py::str(region.contents));
  result["idle_for_graphs"] = region.idle_for_graphs;
  return result;
}

void bind_regions(py::module_& module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  module.def(
      "enter_region", [](const std::optional<std::string>& tag) { plugin_allocator().enter_region(tag); },
      py::arg("tag"), "This thread allocates in the region from now on; None: outside of every region.");
  module.def("leave_region", [] { plugin_allocator().leave_region(); }, "The region entered last ends.");
  module.def("carry_region", &Regions::carry,
             "Threads that work for this one are where it is. False if it is nowhere.");
  module.def("stop_carrying_region", &Regions::stop_carrying);
  module.def(
      "sleep",
      [](const std::vector<std::string>& tags, const std::string& keep, const std::string& folder) {
        plugin_allocator().sleep(tags, keep_from(keep), folder);
      },
      py::arg("tags"), py::arg("keep"), py::arg("folder"), Unlocked(),
      "Gives the physical memory of regions to their devices; contents are kept in the host's memory or in a file.");
  module.def(
      "wake", [](const std::vector<std::string>& tags) { plugin_allocator().wake(tags); }, py::arg("tags"), Unlocked(),
      "Memory for regions at the same addresses, with the contents that were kept.");
  module.def("region_tags", [] { return plugin_allocator().region_tags(); }, "The tags of all regions.");
  module.def(
      "regions",
      [] {
        py::list regions;
        for (const RegionStats& region : plugin_allocator().regions()) regions.append(to_dict(region));
        return regions;
      },
      "Every region with memory, on every device.");
}

}  // namespace poolalloc::python
