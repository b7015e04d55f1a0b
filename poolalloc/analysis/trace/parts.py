"""A trace in two parts: what happened before an event, and what happened from there on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from poolalloc._internal.trace.format import Op, Trace
from poolalloc.errors import UsageError


def split(trace: Trace, at: int) -> tuple[Trace, Trace]:
    """Return the events before number `at`, and the others with what was live there as their initial state.

    Blocks freed before but still in use by other streams are in the first part alone.

    Raises:
        UsageError: not initial_events <= at <= len(trace).
    """
    if not trace.initial_events <= at <= len(trace):
        raise UsageError(f"a trace of {len(trace)} events cannot be split at {at}")
    before, after = trace.events[:at], trace.events[at:]
    freed = before["id"][before["op"] == Op.FREE]
    births = before[(before["op"] == Op.ALLOC) & ~np.isin(before["id"], freed)].copy()
    uses = before[(before["op"] == Op.RECORD_STREAM) & ~np.isin(before["id"], freed)].copy()
    late = (after["op"] == Op.FREE_COMPLETED) & np.isin(after["id"], freed)
    start = after["time_ns"][0] if len(after) else before["time_ns"][-1]
    births["time_ns"] = uses["time_ns"] = start
    rest = np.concatenate([births, uses, after[~late]])
    return replace(trace, events=before), replace(trace, events=rest, initial_events=len(births))
