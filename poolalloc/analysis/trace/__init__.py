"""Recordings of what a program asked of its GPU's memory: reading, writing, and importing other programs' files.

The format itself is poolalloc._internal.trace, and the manual's page docs/trace-format.md.
"""

from __future__ import annotations

from poolalloc._internal.trace.files import read, write
from poolalloc._internal.trace.format import DeviceInfo, Frame, Op, Stacks, StackTable, Trace, TraceError

__all__ = ["DeviceInfo", "Frame", "Op", "StackTable", "Stacks", "Trace", "TraceError", "read", "write"]
