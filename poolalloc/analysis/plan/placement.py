"""Offline placement: where blocks go whose sizes and lifetimes are known beforehand.

    >>> from poolalloc.analysis import plan
    >>> placed = plan.place([(0, 2), (1, 3), (2, 4)], [512, 1024, 512])
    >>> placed.height, placed.load
    (1536, 1536)

Finding the lowest placement is NP-hard (dynamic storage allocation). What comes back is the best of first fit in
several orders, reordering of what reaches the top (squeaky-wheel optimization, Joslin and Clements, 1999) and a search
over placements in order of offset (after MiniMalloc, Moffitt, ASPLOS 2023). `load`, the most bytes alive at one time,
is a bound that no placement passes; where `height == load` the placement is the best there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from poolalloc import _core
from poolalloc.errors import UsageError


@dataclass(frozen=True)
class Placement:
    """An offset for each block such that blocks alive at the same time do not overlap."""

    offsets: npt.NDArray[np.uint64]
    """Shape (n,), in the order of the blocks given; bytes, multiples of the alignment."""
    height: int
    """The highest end of a block: the bytes that all blocks together need."""
    load: int
    """The most bytes alive at one time, sizes rounded up to the alignment: no placement has a smaller height."""
    method: str
    """Which heuristic found it: `first fit`, `reordering` or `search`; empty for no blocks."""

    @property
    def overhead(self) -> float:
        """Height over load; 1.0 is the best there is, and is what no blocks have."""
        return self.height / self.load if self.load else 1.0


def place(
    lifetimes: Sequence[tuple[int, int]] | npt.NDArray[np.integer],
    sizes: Sequence[int] | npt.NDArray[np.integer],
    *,
    groups: Sequence[int] | npt.NDArray[np.integer] | None = None,
    alignment: int = 1,
    seconds: float = 1.0,
    seed: int = 1,
    enough: int | None = None,
) -> Placement:
    """Place blocks whose lifetimes are known so that the highest address is low.

    Args:
        lifetimes: shape (n, 2), whole numbers in any unit of time: block i is alive in [lifetimes[i][0],
            lifetimes[i][1]).
        sizes: shape (n,), bytes, each more than 0.
        groups: shape (n,), whole numbers: lifetimes with the same one are a single block, alive several times, and get
            one offset; those with a negative one, and all without groups, are blocks of their own.
        alignment: offsets become multiples of this many bytes.
        seconds: when to stop looking for a better placement. The first-fit orders are tried in any case.
        seed: of the random choices. The same seed finds the same placement only if both are stopped by success.
        enough: a height in bytes to be content with; by default only the load is.

    Raises:
        ValueError: shapes that do not match, a lifetime that ends before it begins, a size below 1, or a group with
            two sizes.
    """
    spans = np.asarray(lifetimes)
    amounts = np.asarray(sizes)
    if spans.size == 0 and amounts.size == 0:
        return Placement(np.zeros(0, np.uint64), 0, 0, "")
    if spans.ndim != 2 or spans.shape[1] != 2 or amounts.shape != spans.shape[:1]:
        raise UsageError(f"lifetimes must have shape (n, 2) and sizes (n,), not {spans.shape} and {amounts.shape}")
    if spans.dtype.kind not in "iu" or amounts.dtype.kind not in "iu":
        raise UsageError("lifetimes and sizes must be whole numbers")
    together = np.full(len(amounts), -1) if groups is None else np.asarray(groups)
    if together.shape != amounts.shape or together.dtype.kind not in "iu":
        raise UsageError(f"groups must be whole numbers of shape {amounts.shape}")
    if int(amounts.min()) < 1:
        raise UsageError(f"a block of {int(amounts.min())} bytes has no place")
    if alignment < 1:
        raise UsageError(f"alignment {alignment} is below 1")
    rounded = (amounts.astype(np.uint64) + np.uint64(alignment - 1)) // np.uint64(alignment)
    found = _core.place_offline(
        spans[:, 0].astype(np.int64),
        spans[:, 1].astype(np.int64),
        rounded,
        together.astype(np.int64),
        seconds,
        seed,
        0 if enough is None else enough // alignment,
    )
    return Placement(
        found["offsets"] * np.uint64(alignment), found["height"] * alignment, found["load"] * alignment, found["method"]
    )
