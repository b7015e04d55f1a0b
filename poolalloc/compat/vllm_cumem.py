"""The names of vLLM's sleep-mode allocator (vllm.device_allocator.cumem), so that an engine sleeps on poolalloc.

    import poolalloc
    from poolalloc.compat import vllm_cumem

    poolalloc.install()
    vllm_cumem.replace()     # before vLLM imports its own

A tag is a region of the same name. Not there: `pointer_to_data` and the functions that make and unmap allocations one
by one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from poolalloc import sleeping as _sleeping
from poolalloc.errors import UsageError

__all__ = ["CuMemAllocator", "cumem_available", "replace"]

cumem_available = True
_NAME = "vllm.device_allocator.cumem"


class CuMemAllocator:
    """What vLLM's class of this name does. get_instance() is the one there is."""

    instance: ClassVar[CuMemAllocator | None] = None
    default_tag: ClassVar[str] = "default"

    @staticmethod
    def get_instance() -> CuMemAllocator:
        """Return the one of this process."""
        if CuMemAllocator.instance is None:
            CuMemAllocator.instance = CuMemAllocator()
        return CuMemAllocator.instance

    @contextmanager
    def use_memory_pool(self, tag: str | None = None) -> Iterator[None]:
        """Allocate under a tag, until the end of the `with`.

        Raises:
            NotInstalledError: before poolalloc.install().
        """
        with _sleeping.region(self.default_tag if tag is None else tag):
            yield

    def sleep(self, offload_tags: tuple[str, ...] | str | None = None) -> None:
        """Give the memory of every tag to its device. Only `offload_tags` (None: the default tag) keep their contents.

        Raises:
            UsageError: a region cannot sleep now, or the host has no room; those before it in the list may be asleep.
        """
        offloaded = (self.default_tag,) if offload_tags is None else offload_tags
        if isinstance(offloaded, str):
            offloaded = (offloaded,)
        for tag in _tags():
            _sleeping.sleep(tag, keep="host" if tag in offloaded else "nothing")

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Take the memory of these tags back (None: of all), at the same addresses, all or none.

        Raises:
            torch.OutOfMemoryError: the device has no room; everything is as asleep as before.
        """
        here = [tag for tag in _tags() if tags is None or tag in tags]
        if here:
            _sleeping.wake(*here)

    def get_current_usage(self) -> int:
        """The bytes of all tags, asleep or awake."""
        return sum(region.reserved + region.asleep for region in _sleeping.regions())


def _tags() -> list[str]:
    return list(dict.fromkeys(region.tag for region in _sleeping.regions()))


def replace() -> None:
    """Let `import vllm.device_allocator.cumem` find this module.

    Raises:
        UsageError: vLLM has imported its own already.
    """
    own = sys.modules.setdefault(_NAME, sys.modules[__name__])
    if own is not sys.modules[__name__]:
        raise UsageError(f"{_NAME} was imported already; call replace() before vLLM is imported")
