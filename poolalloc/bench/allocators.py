"""The table of allocators that `poolalloc bench` can compare. A new one is one more entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from poolalloc.errors import UnknownNameError

__all__ = ["ALLOCATORS", "Allocator", "named"]


@dataclass(frozen=True)
class Allocator:
    """How a cell gets its allocator, and where its figures come from.

    torch_conf is what torch's own allocator is told ("" leaves its defaults); install names a function
    ("module:function", called without arguments before anything touches CUDA; "" for none); figures says whose
    statistics are reported; settings are entries of torch's allocator settings that must hold in the cell.
    """

    name: str
    title: str
    figures: Literal["torch", "poolalloc"]
    torch_conf: str = ""
    install: str = ""
    settings: tuple[tuple[str, object], ...] = ()

    def environment(self, torch_version: tuple[int, int]) -> dict[str, str]:
        """Return the environment variables of the cell, for this (major, minor) version of torch."""
        if not self.torch_conf:
            return {}
        return {conf_variable(torch_version): self.torch_conf}


ALLOCATORS: dict[str, Allocator] = {
    allocator.name: allocator
    for allocator in (
        Allocator("default", "torch's default", "torch", settings=(("expandable_segments", False),)),
        Allocator(
            "expandable",
            "torch's expandable segments",
            "torch",
            torch_conf="expandable_segments:True",
            settings=(("expandable_segments", True),),
        ),
        Allocator("poolalloc", "poolalloc", "poolalloc", install="poolalloc:install"),
    )
}
"""By name."""


def named(name: str) -> Allocator:
    """Return the allocator of the table, or torch's own with the settings that `name` spells, as `key:value,...`.

    Raises:
        UnknownNameError: it is neither; the text says what there is.
    """
    if name in ALLOCATORS:
        return ALLOCATORS[name]
    if ":" in name:
        return Allocator(name, f"torch's with {name}", "torch", torch_conf=name)
    raise UnknownNameError(
        f"unknown allocator {name!r}; there are {', '.join(ALLOCATORS)}, and torch's settings as key:value"
    )


# Variables that would change torch's allocator behind a cell's back.
TORCH_VARIABLES = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
)


def conf_variable(torch_version: tuple[int, int]) -> str:
    """Return the variable that configures the allocator of this torch: PYTORCH_CUDA_ALLOC_CONF before 2.9."""
    return "PYTORCH_ALLOC_CONF" if torch_version >= (2, 9) else "PYTORCH_CUDA_ALLOC_CONF"


def cell_environment(allocator: Allocator, torch_version: tuple[int, int], base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a cell made from `base`, without TORCH_VARIABLES that the allocator did not ask for."""
    environment = {name: value for name, value in base.items() if name not in TORCH_VARIABLES}
    return environment | allocator.environment(torch_version)
