"""The places where torch keeps its CUDA allocator: what stands there, and whether it is still poolalloc's.

torch keeps it in two: c10::cuda::CUDACachingAllocator::allocator, which a swap changes, and the table behind
c10::GetAllocator, which it does not. torch.accelerator reads the second and would go on talking to the built-in
allocator, which holds nothing. Both are plain exported symbols, so they can be read, and made to agree.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType

_CUDA = 1  # c10::DeviceType::CUDA
_GET = "_ZN3c1012GetAllocatorERKNS_10DeviceTypeE"
_SET = "_ZN3c1012SetAllocatorENS_10DeviceTypeEPNS_9AllocatorEh"
_CURRENT = "_ZN3c104cuda20CUDACachingAllocator9allocatorE"


def allocators(torch: ModuleType) -> tuple[int | None, int | None]:
    """The CUDA allocator's address in both places; (None, None) where they cannot be read."""
    try:
        get = ctypes.CDLL(str(_libraries(torch) / "libc10.so"))[_GET]
        current = _place(torch).value
    except (OSError, AttributeError, ValueError):
        return None, None
    get.restype = ctypes.c_void_p
    return current, get(ctypes.byref(ctypes.c_int8(_CUDA)))


def mend_accelerator(torch: ModuleType, before: tuple[int | None, int | None]) -> bool:
    """Make the second place agree with the first; only if they did before, for then both hold the same pointer type."""
    if before[0] is None or before[0] != before[1]:
        return False
    current, _ = allocators(torch)
    try:
        set_allocator = ctypes.CDLL(str(_libraries(torch) / "libc10.so"))[_SET]
    except (OSError, AttributeError):
        return False
    set_allocator.restype = None
    for priority in range(256):  # what came with a higher one stays; torch 2.15 registers its own with 1, 2.11 with 0
        set_allocator(ctypes.c_int8(_CUDA), ctypes.c_void_p(current), ctypes.c_uint8(priority))
        if allocators(torch) == (current, current):
            return True
    return False


class Watch:
    """Remembers the allocator that torch has now, and tells whether it has another later."""

    def __init__(self) -> None:
        self._place: ctypes.c_void_p | None = None
        self._mine: int | None = None
        try:
            self._place = _place(sys.modules["torch"])
            self._mine = self._place.value
        except (OSError, ValueError):  # a torch that keeps it elsewhere: then nothing is known
            return

    def changed(self) -> bool:
        """Whether torch has another allocator now. Costs a read of memory."""
        return self._place is not None and self._place.value != self._mine


def _place(torch: ModuleType) -> ctypes.c_void_p:
    return ctypes.c_void_p.in_dll(ctypes.CDLL(str(_libraries(torch) / "libc10_cuda.so")), _CURRENT)


def _libraries(torch: ModuleType) -> Path:
    return Path(str(torch.__file__)).parent / "lib"
