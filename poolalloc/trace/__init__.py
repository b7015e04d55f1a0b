"""Recordings of what a program asked of its GPU's memory: the file format, and the import of other programs' files."""

from __future__ import annotations

from poolalloc.trace.files import read, write
from poolalloc.trace.format import DeviceInfo, Frame, Op, Stacks, StackTable, Trace, TraceError

__all__ = ["DeviceInfo", "Frame", "Op", "StackTable", "Stacks", "Trace", "TraceError", "read", "write"]
