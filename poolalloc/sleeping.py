"""Memory that sleeps: allocated under a tag, given back to the device, and brought back at the same addresses.

    with poolalloc.region("weights"):
        model = Model().cuda()
    ...
    poolalloc.sleep("weights", keep="host")   # the device's other users have its memory now
    ...
    poolalloc.wake("weights")                 # the same addresses, the same contents

The manual page is docs/sleep.md.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ContextDecorator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from poolalloc import _core
from poolalloc._internal.device import device_index
from poolalloc._internal.installed import require_installed
from poolalloc.errors import OutOfMemoryError, UsageError

if TYPE_CHECKING:
    from torch.types import Device

__all__ = ["Keep", "Region", "region", "regions", "sleep", "wake"]

Keep = Literal["nothing", "host", "file"]
"""What becomes of the contents of memory that falls asleep: dropped, kept in the host's memory, kept in a file."""


@dataclass(frozen=True)
class Region:
    """What one region has on one device, in bytes.

    Awake, `reserved` is what it holds and `asleep` is 0; asleep, it holds nothing and `asleep` is what waking takes.
    """

    tag: str
    device: int
    is_asleep: bool
    requested: int  # asked by the program, of tensors that live in it, asleep or not
    resident: int  # pages under tensors
    reserved: int  # pages held on the device
    asleep: int  # pages that it has given to the device, and takes back when it wakes
    contents: int  # what was in them, where it was kept
    contents_in: str | None  # "host" or "file"; None if nothing was kept
    idle_for_graphs: int  # idle pages that stay, since the replays of a CUDA graph may touch them; part of `reserved`


class region(ContextDecorator):  # noqa: N801 - it is called as a function is
    """Give what this thread allocates on any device until the end of the `with` to the region of that tag.

    So does what autograd's threads allocate in backward passes that this thread runs meanwhile, and what pools
    (torch.cuda.MemPool, CUDA graphs) that are made meanwhile ever allocate. Regions share no page of physical memory. A
    tensor that outlives the `with` stays where it is, and is freed as any other. Regions nest: the inner one counts.
    Entering costs a microsecond; a program that has no region pays nothing for them. It is the thread that is in the
    region, not the coroutine: leave it before an `await` or a `yield`.

    Also a decorator.

    Args:
        tag: any text that is not empty. The first use of a tag makes the region. None: outside of every region.

    Raises:
        NotInstalledError: before install().
        UsageError: the tag is empty, or no text.
    """

    def __init__(self, tag: str | None) -> None:
        if tag is not None:
            _check_tags([tag])
        self._tag = tag

    def __enter__(self) -> None:
        require_installed()
        _follow_backward_passes()
        _core.enter_region(self._tag)

    def __exit__(self, *_: object) -> None:
        _core.leave_region()


def _check_tags(tags: Iterable[object]) -> None:
    for tag in tags:
        if not isinstance(tag, str):
            raise UsageError(f"a tag is a text, not {tag!r}")
        try:
            tag.encode()
        except UnicodeEncodeError:
            raise UsageError(f"this tag is no valid text: {tag!r}") from None


@functools.cache
def _follow_backward_passes() -> None:
    """Let autograd's threads know for whom they work.

    Both names are one private function of torch's, through which every backward pass of Python goes. Where there is no
    such function, what autograd's threads allocate is in no region.
    """
    import torch

    run = getattr(torch.autograd.graph, "_engine_run_backward", None)
    if run is None:
        return

    @functools.wraps(run)
    def run_in_region(*args: Any, **kwargs: Any) -> Any:
        if not _core.carry_region():
            return run(*args, **kwargs)
        try:
            return run(*args, **kwargs)
        finally:
            _core.stop_carrying_region()

    for module in (torch.autograd, torch.autograd.graph):
        if getattr(module, "_engine_run_backward", None) is run:
            module._engine_run_backward = run_in_region  # type: ignore[attr-defined]


def regions(device: Device = None) -> list[Region]:
    """Every region that has memory on a device (None: on any device), asleep or awake.

    Raises:
        NotInstalledError: before install().
    """
    require_installed()
    index = None if device is None else device_index(device)
    return [Region(**one) for one in _core.regions() if index in (None, one["device"])]


def sleep(*tags: str, keep: Keep = "host", folder: str | os.PathLike[str] | None = None) -> None:
    """Give the physical memory of regions (none named: of all) to their devices. Addresses and tensors stay.

    Waits for all work on those devices. Until wake(), work must not touch the tensors. An allocation in the region is
    an error, or wakes it with the option `wake_on_allocate`. Tensors may be freed, and contents that are kept go with
    the last one. A region that is asleep already stays as it is. On any error nothing has changed.

    Args:
        tags: of the regions.
        keep: what becomes of the contents. "host": they are copied to the host's memory, as much as the option
            `sleep_host_limit` allows. "file": to a file without a name in `folder`, which goes when the region wakes or
            the process ends, however that is. "nothing": they are lost.
        folder: for keep="file"; None is the system's folder for temporary files.

    Raises:
        NotInstalledError: before install().
        UsageError: there is no such region; a CUDA graph is being captured; a tensor of the region is shared with
            another process; memory comes in whole segments; the contents find no room on the host.
        DriverError: the driver refused a call.
    """
    require_installed()
    _check_tags(tags)
    _drop_workspaces()
    place = os.fspath(folder) if folder is not None else tempfile.gettempdir() if keep == "file" else ""
    _core.sleep(list(tags) or _core.region_tags(), str(keep), place)


def _drop_workspaces() -> None:
    """Let go of cuBLAS' workspaces, which torch keeps for ever and makes wherever the first product of matrices runs.

    One in a region would be gone while others use it. torch makes a new one with the next product.
    """
    torch = sys.modules.get("torch")
    drop = getattr(torch and torch._C, "_cuda_clearCublasWorkspaces", None)
    if drop is not None:
        drop()


def wake(*tags: str) -> None:
    """Give regions (none named: all) their memory back, at the same addresses and with the contents that were kept.

    A CUDA graph that was captured before the sleep can be replayed again. A region that is awake stays as it is. Where
    the device is short, what is idle on it is given up and on_oom() callbacks are called, which may put other regions
    to sleep. If that is not enough all of these are as asleep as before, contents included, and may be woken later.

    Raises:
        NotInstalledError: before install().
        torch.OutOfMemoryError: the device has no room. The text says who holds the rest.
        UsageError: there is no such region, or a CUDA graph is being captured.
        DriverError: the driver refused a call.
    """
    require_installed()
    _check_tags(tags)
    try:
        _core.wake(list(tags) or _core.region_tags())
    except OutOfMemoryError as error:
        import torch

        raise torch.OutOfMemoryError(str(error)) from None
