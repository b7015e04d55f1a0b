"""Devices as torch writes them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from poolalloc.errors import UsageError

if TYPE_CHECKING:
    from torch.types import Device


def device_index(device: Device) -> int:
    """A device as torch writes it (None, 0, "cuda:1", torch.device) to its index. None is the current device."""
    if isinstance(device, str):
        name, _, index = device.partition(":")
        if name != "cuda" or (index and not index.isdigit()):
            raise UsageError(f'no CUDA device is named "{device}"; write "cuda", "cuda:0" or 0')
        device = int(index) if index else None
    elif device is not None and not isinstance(device, int):  # torch.device
        if device.type != "cuda":
            raise UsageError(f"{device} is not a CUDA device")
        device = device.index
    if device is None:
        torch = sys.modules.get("torch")
        return int(torch.cuda.current_device()) if torch is not None and torch.cuda.is_initialized() else 0
    return int(device)
