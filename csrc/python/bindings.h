// The parts of poolalloc._core. Thin: conversions and names only, no logic of its own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>

#include "core/allocator.h"

namespace poolalloc::python {

// Core's exceptions become those of poolalloc.errors.
void bind_errors(pybind11::module_& module);
// Options, sizes and size classes.
void bind_values(pybind11::module_& module);
// The allocator that torch uses in this process.
void bind_plugin(pybind11::module_& module);
// Engine: an allocator over a device that is only arithmetic.
void bind_engine(pybind11::module_& module);
// Replay: traces through core's allocator over such a device.
void bind_replay(pybind11::module_& module);
// Regions of that allocator.
void bind_regions(pybind11::module_& module);
// What a program says it is at work on.
void bind_scopes(pybind11::module_& module);
// Offline placement.
void bind_placement(pybind11::module_& module);
// What a device's driver calls take.
void bind_driver_costs(pybind11::module_& module);

// A Python callable of (device, bytes) as a callback of the out-of-memory ladder: it takes the interpreter's lock, and
// what it raises is reported as unraisable.
OomCallbacks::Callback oom_callback_of(pybind11::function callable);

// The scope that the calling thread is in; 0 is none. Takes no lock.
std::uint32_t scope_here();
// Whether any scope was ever named.
const std::atomic<bool>& any_scope();
// Under the interpreter's lock.
const std::string& scope_name(std::uint32_t scope);

// Where the calling thread's Python program is: its scope, and its frames if they are wanted. Takes the interpreter's
// lock, but for a thread in no scope whose frames nobody wants.
StackSource python_stacks(bool with_frames);
// Lets go of the code objects that recorded stacks named. Under the interpreter's lock.
void forget_python_stacks();

// "nothing", "host" or "file". Throws UsageError.
Keep keep_from(const std::string& word);
// Statistics as nested dicts, by the names of stats.h.
pybind11::dict to_dict(const DeviceStats& stats);
pybind11::dict to_dict(const RegionStats& region);
pybind11::dict to_dict(const Options& options);
Options options_from(const std::string& conf);
// A plan as poolalloc.analysis.plan hands it over: {above, parts: [{device, stream, first, period, height, sizes,
// offsets}]}. None is none.
std::optional<Plan> plan_from(const pybind11::object& plan);

}  // namespace poolalloc::python
