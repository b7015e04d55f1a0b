"""Runs programs on a simulated GPU: an unmodified CUDA build of torch over libsimgpu.so instead of the CUDA runtime.

Every allocation is the real one; of what a program computes only small integers and booleans are, and all else reads
as zeros. The simulation itself is C++ (csrc/simgpu): here a card is chosen, the program checked and started.

`cards` knows what can be simulated, `environment` the variables, `programs` checks what is to be started, `launching`
starts it, `values` compiles what computes integers. The package may import the top level's configuration and errors,
and poolalloc._internal; no analysis, bench or command line.
"""

from __future__ import annotations

from poolalloc.sim.cards import (
    DEFAULT_GPU,
    SimGpu,
    SimulationError,
    find_gpu,
    gpus,
    is_simulated,
    library_folder,
)
from poolalloc.sim.environment import (
    MAXIMUM_DEVICES,
    MAXIMUM_LAG,
    MAXIMUM_MEMORY,
    MINIMUM_MEMORY,
    VMM_FAULTS,
    sees_devices,
    sim_environment,
)
from poolalloc.sim.launching import TIMED_OUT, SimulatedRun, execute, run_simulated, supervise
from poolalloc.sim.programs import add_values, prepare

__all__ = [
    "DEFAULT_GPU",
    "MAXIMUM_DEVICES",
    "MAXIMUM_LAG",
    "MAXIMUM_MEMORY",
    "MINIMUM_MEMORY",
    "TIMED_OUT",
    "VMM_FAULTS",
    "SimGpu",
    "SimulatedRun",
    "SimulationError",
    "add_values",
    "execute",
    "find_gpu",
    "gpus",
    "is_simulated",
    "library_folder",
    "prepare",
    "run_simulated",
    "sees_devices",
    "sim_environment",
    "supervise",
]
