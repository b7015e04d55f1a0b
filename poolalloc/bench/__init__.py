"""Runs programs under several allocators, each in a process of its own, and compares what they reserved.

`allocators` is the table of allocators, `workloads` finds programs, `devices` chooses the GPU, `harness` runs the
cells, `child` is what runs inside a cell, `check` holds what must agree, `results` the figures, `report` and `picture`
draw. The package may import the top level of poolalloc, which cells call, and poolalloc.sim.
"""

__all__ = []
