// Options, sizes as text, and size classes.
#include "core/base/size_class.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace poolalloc::python {
namespace {

// The table holds every bound as a double; whole types come back as int.
py::object number_of(const OptionInfo& info, double value) {
  const std::string type = info.type;
  if (type == "boolean") return py::bool_(value != 0);
  if (type == "number") return py::float_(value);
  return py::int_(static_cast<long long>(value));
}

py::list table_rows() {
  py::list rows;
  for (const OptionInfo& info : option_table()) {
    py::dict row;
    row["name"] = info.name;
    row["type"] = info.type;
    const std::string_view type = info.type;
    if (type == "choice" || type == "text")
      row["default"] = info.default_word;
    else
      row["default"] = type == "bins" ? py::tuple() : number_of(info, info.default_value);
    row["minimum"] = number_of(info, info.minimum);
    row["maximum"] = number_of(info, info.maximum);
    row["unit"] = info.unit;
    row["help"] = info.help;
    rows.append(row);
  }
  return rows;
}

template <typename T>
py::object to_python(const T& value) {
  return py::cast(value);
}

py::object to_python(const std::vector<ExactBin>& bins) {
  py::list result;
  for (const ExactBin& bin : bins) {
    py::dict row;
    row["size"] = bin.size;
    row["preallocate"] = bin.preallocate;
    row["keep"] = bin.keep;
    result.append(row);
  }
  return py::tuple(result);
}

int checked_bin_of(Bytes bytes) {
  if (bytes == 0 || bytes > kMaxBinnedBytes)
    throw py::value_error("bin_of: " + std::to_string(bytes) + " bytes; allowed: 1 to 2^40");
  return bin_of(bytes);
}

Bytes checked_bin_bytes(int bin) {
  if (bin < 0 || bin >= kBins)
    throw py::value_error("bin_bytes: bin " + std::to_string(bin) + "; allowed: 0 to " + std::to_string(kBins - 1));
  return bin_bytes(bin);
}

}  // namespace

Options options_from(const std::string& conf) {
  Options options;
  parse_options(options, conf);
  check_options(options);
  return options;
}

py::dict to_dict(const Options& options) {
  py::dict result;
#define OPTION(name, type, default_value, minimum, maximum, unit, help) result[#name] = to_python(options.name);
#include "core/options/options.def"
#undef OPTION
  return result;
}

void bind_values(py::module_& module) {
  module.attr("GRANULARITY") = kGranularity;
  module.attr("PAGE_BYTES") = kPageBytes;
  module.attr("BINS") = kBins;
  module.def(
      "parse_options", [](const std::string& conf) { return to_dict(options_from(conf)); }, py::arg("conf"),
      "Every option, from \"key:value,key:value\" on top of the defaults.");
  module.def("option_table", &table_rows, "The options: name, type, default, minimum, maximum, unit, help.");
  module.def("parse_bytes", &parse_bytes, py::arg("text"), "\"2 MiB\" to 2097152.");
  module.def("format_bytes", &format_bytes, py::arg("bytes"), "2097152 to \"2 MiB\".");
  module.def("bin_of", &checked_bin_of, py::arg("bytes"), "The size class that serves a request of 1 to 2^40 bytes.");
  module.def("bin_bytes", &checked_bin_bytes, py::arg("bin"), "The size of the blocks of a size class, in bytes.");
}

}  // namespace poolalloc::python
