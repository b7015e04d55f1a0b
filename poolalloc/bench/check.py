"""What an allocator says it reserved against what the driver says is in use. Disagreement is an error.

On the simulated GPU the driver's count is exact, and everything that a torch program takes from the device comes from
its allocator (cuBLAS workspaces too: torch allocates them as tensors; the simulated libraries take nothing themselves).
All segments and handles are multiples of the driver's 2 MiB granularity. So, for every device:

    reserved now   = driver's used bytes now
    peak reserved  = driver's peak used bytes                    if no allocation had to be retried
    peak reserved <= driver's peak used bytes <= its capacity    otherwise

(Memory that was created in several handles for a request which then failed is undone before anyone calls it reserved.)

On a real GPU there is no peak to read, and contexts, loaded kernels and libraries take memory of their own, so only the
growth of the device's used bytes since before the program's start is compared, within a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20

# A CUDA context with its loaded kernels and library handles; other programs on the card are not expected to grow.
REAL_EXCESS = 2048 * MIB
REAL_SHORTFALL = 64 * MIB


@dataclass
class DeviceFigures:
    """The allocator's own figures for one device, and the driver's beside them. driver_peak is None on a real GPU."""

    device: int
    requested_peak: int
    live_peak: int
    reserved_peak: int
    reserved_current: int
    retries: int
    out_of_memory: int
    driver_current: int
    driver_peak: int | None
    capacity: int


def compare_simulated(figures: DeviceFigures) -> list[str]:
    """Return the disagreements, each with both figures; none on success."""
    where = f"device {figures.device}"
    found = []
    if figures.reserved_current != figures.driver_current:
        found.append(
            f"{where}: the allocator says {figures.reserved_current} bytes are reserved, the driver says "
            f"{figures.driver_current} are used (difference {figures.driver_current - figures.reserved_current})"
        )
    if figures.driver_peak is None:
        found.append(f"{where}: the simulated driver gave no peak")
    elif figures.retries == 0 and figures.out_of_memory == 0:
        if figures.reserved_peak != figures.driver_peak:
            found.append(
                f"{where}: the allocator says its peak reserved was {figures.reserved_peak} bytes, the driver says "
                f"{figures.driver_peak} (difference {figures.driver_peak - figures.reserved_peak})"
            )
    elif not figures.reserved_peak <= figures.driver_peak <= figures.capacity:
        found.append(
            f"{where}: after retries the driver's peak must lie between the allocator's peak reserved, "
            f"{figures.reserved_peak} bytes, and the capacity, {figures.capacity}; the driver says "
            f"{figures.driver_peak}"
        )
    return found + compare_order(figures)


def compare_real(figures: DeviceFigures, used_before: int) -> list[str]:
    """Return the disagreements on a real GPU; driver_current and used_before are the whole card's used bytes."""
    growth = figures.driver_current - used_before
    found = []
    if not -REAL_SHORTFALL <= growth - figures.reserved_current <= REAL_EXCESS:
        found.append(
            f"device {figures.device}: the allocator says {figures.reserved_current} bytes are reserved, the driver "
            f"says the used memory grew by {growth} (allowed: from {REAL_SHORTFALL} less to {REAL_EXCESS} more, for "
            "the CUDA context and libraries; another program on the card also shows here)"
        )
    return found + compare_order(figures)


def compare_order(figures: DeviceFigures) -> list[str]:
    """Return what breaks requested <= live <= reserved, for peaks."""
    if figures.requested_peak <= figures.live_peak <= figures.reserved_peak:
        return []
    return [
        f"device {figures.device}: peaks must obey requested <= live <= reserved, but are {figures.requested_peak}, "
        f"{figures.live_peak}, {figures.reserved_peak} bytes"
    ]
