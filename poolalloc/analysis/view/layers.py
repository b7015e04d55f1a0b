"""What one allocator did with a trace, as the page shows it: made of a replay, or of what was seen of a performance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from poolalloc.analysis.replay import Result
    from poolalloc.analysis.trace.observe import Observed

QUANTITIES = ("requested", "live", "resident", "reserved")


@dataclass(frozen=True)
class Layer:
    """One allocator. `values[device][quantity]` are bytes after each of `events`."""

    name: str
    how: str
    """Where its figures come from, such as `replayed on modelled devices`."""
    events: npt.NDArray[np.int64]
    values: Mapping[int, Mapping[str, npt.NDArray[np.int64]]]
    peaks: Mapping[int, Mapping[str, int]]
    placements: npt.NDArray[np.uint64] | None = None
    """The address of each allocation of the trace, as far as it came; None: not known."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further figures for the table: heading and text."""
    out_of_memory: int | None = None
    """The event at which memory ran out."""


def of_result(result: Result, facts: Mapping[str, str]) -> list[Layer]:
    """Return poolalloc's layer of a replay with samples, and that of the recorded allocator where it is known."""
    curves = {device.device: device.curve for device in result.devices if device.curve is not None}
    events = next((curve.events for curve in curves.values()), np.zeros(0, np.int64))
    layers = [
        Layer(
            name="poolalloc",
            how="replayed on modelled devices",
            events=events,
            values={device: {name: curve.values[name] for name in QUANTITIES} for device, curve in curves.items()},
            peaks={device.device: {name: device.peak(name) for name in QUANTITIES} for device in result.devices},
            placements=result.placements,
            facts=facts,
            out_of_memory=None if result.out_of_memory is None else result.out_of_memory.event,
        )
    ]
    recorded = {
        device.device: device.curve.recorded_reserved
        for device in result.devices
        if device.curve is not None and device.curve.recorded_reserved is not None
    }
    known = [device.recorded for device in result.devices if device.recorded is not None]
    if recorded and known:
        layers.append(
            Layer(
                name=known[0].source.removesuffix(", as recorded"),
                how="as recorded",
                events=events,
                values={device: {"reserved": values} for device, values in recorded.items()},
                peaks={
                    device.device: {"reserved": device.recorded.peak_reserved}
                    for device in result.devices
                    if device.recorded is not None
                },
            )
        )
    return layers


def of_observed(
    name: str,
    observed: Observed,
    facts: Mapping[str, str],
    out_of_memory: int | None = None,
    device_name: str | None = None,
) -> Layer:
    """Return the layer of an allocator that performed the trace, on simulated devices or the real one named."""
    return Layer(
        name=name,
        how=f"performed through torch on {device_name or 'simulated devices'}",
        events=observed.events,
        values=observed.values,
        peaks={
            device: {quantity: int(column.max(initial=0)) for quantity, column in values.items()}
            for device, values in observed.values.items()
        },
        placements=observed.placements,
        facts=facts,
        out_of_memory=out_of_memory,
    )
