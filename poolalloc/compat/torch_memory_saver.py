"""The names of the library torch_memory_saver: regions that pause and resume.

    from poolalloc.compat.torch_memory_saver import torch_memory_saver

    with torch_memory_saver.region(tag="weights", enable_cpu_backup=True):
        model = Model().cuda()
    torch_memory_saver.pause("weights")
    torch_memory_saver.resume("weights")

A tag has two regions of poolalloc, one for memory with a backup and one for memory without; poolalloc.regions() names
them `weights` and `weights (no backup)`. Nothing is preloaded, so configure_subprocess() and `hook_mode` do nothing.
Not there: get_cpu_backup().
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from poolalloc import sleeping as _sleeping

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

__all__ = ["TorchMemorySaver", "configure_subprocess", "torch_memory_saver"]

_NO_BACKUP = " (no backup)"


class TorchMemorySaver:
    """What that library's object of this class does. There is one, `torch_memory_saver`."""

    hook_mode = "torch"
    """Any value may be set, and none has an effect."""
    retain_cpu_backup = False
    """May be set; backups are given up when their memory resumes, all the same."""
    memory_margin_bytes = 0
    """May be set; poolalloc.set_memory_limit() is what leaves room on a device."""

    @property
    def enabled(self) -> bool:
        """Always true."""
        return True

    @contextmanager
    def region(self, tag: str = "default", enable_cpu_backup: bool = False) -> Iterator[None]:
        """Allocate, until the end of the `with`, memory that pause() gives back; with a backup, contents are kept.

        Raises:
            NotInstalledError: before poolalloc.install().
        """
        with _sleeping.region(tag if enable_cpu_backup else tag + _NO_BACKUP):
            yield

    @contextmanager
    def cuda_graph(  # noqa: PLR0917 - the other library's order
        self,
        cuda_graph: torch.cuda.CUDAGraph,
        pool: Any = None,
        stream: torch.cuda.Stream | None = None,
        capture_error_mode: str = "global",
        tag: str = "default",
        enable_cpu_backup: bool = False,
    ) -> Iterator[None]:
        """Capture a graph as torch.cuda.graph() does, with its memory in a region; it replays again after resume()."""
        import torch

        with (
            self.region(tag, enable_cpu_backup),
            torch.cuda.graph(cuda_graph, pool=pool, stream=stream, capture_error_mode=capture_error_mode),
        ):
            yield

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Allocate outside of every region, until the end of the `with`."""
        with _sleeping.region(None):
            yield

    def pause(self, tag: str | None = None) -> None:
        """Give the memory of a tag, or of all, to the device."""
        for name in _names(tag):
            _sleeping.sleep(name, keep="nothing" if name.endswith(_NO_BACKUP) else "host")

    def resume(self, tag: str | None = None) -> None:
        """Take it back, at the same addresses, all or none.

        Raises:
            torch.OutOfMemoryError: the device has no room; everything is as paused as before.
        """
        if names := _names(tag):
            _sleeping.wake(*names)

    def get_cpu_backup(self, x: torch.Tensor) -> torch.Tensor:
        """Not there.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("poolalloc has no tensor of what sleeps; resume the tag, and copy the tensor")


def _names(tag: str | None) -> list[str]:
    """The regions of a tag that there are; of all tags."""
    here = list(dict.fromkeys(region.tag for region in _sleeping.regions()))
    return [name for name in here if tag in (None, name.removesuffix(_NO_BACKUP))]


def configure_subprocess() -> AbstractContextManager[None]:
    """Return a context in which that library would preload itself into children. Nothing needs to be."""
    return nullcontext()


torch_memory_saver = TorchMemorySaver()
