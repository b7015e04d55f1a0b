"""Recordings of what a program asked of its GPU's memory: reading, writing, and importing other programs' files.

The format itself is poolalloc._internal.trace, and the manual's page docs/trace-format.md.
"""

from __future__ import annotations

from poolalloc._internal.trace.files import read, write
from poolalloc._internal.trace.format import DeviceInfo, Frame, Op, Stacks, StackTable, Trace, TraceError
from poolalloc.analysis.trace.import_report import ImportReport
from poolalloc.analysis.trace.parts import split
from poolalloc.analysis.trace.rmm_csv import import_log
from poolalloc.analysis.trace.torch_snapshot import import_snapshot

__all__ = [
    "DeviceInfo",
    "Frame",
    "ImportReport",
    "Op",
    "StackTable",
    "Stacks",
    "Trace",
    "TraceError",
    "import_log",
    "import_snapshot",
    "read",
    "split",
    "write",
]
