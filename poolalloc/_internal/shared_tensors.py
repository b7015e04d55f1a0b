"""CUDA tensors that arrive in a process without poolalloc: the error says which side lacks what.

Such a process could only say that the tensor comes from "a future version of torch". So tensors that poolalloc's memory
holds travel with a function of this module around torch's own, which looks before it opens them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from poolalloc.errors import NotInstalledError


def name_the_sender() -> None:
    """Let tensors say that they come from poolalloc when torch.multiprocessing sends them."""
    from multiprocessing.reduction import ForkingPickler

    from torch.multiprocessing import reductions

    reducers: dict[type, Any] = getattr(ForkingPickler, "_extra_reducers", {})
    for kind in [kind for kind, reduce in reducers.items() if reduce is reductions.reduce_tensor]:
        ForkingPickler.register(kind, _reduce)


def _reduce(tensor: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    from torch.multiprocessing import reductions

    reduce: Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]] = reductions.reduce_tensor
    rebuild, arguments = reduce(tensor)
    if rebuild is not reductions.rebuild_cuda_tensor:
        return rebuild, arguments
    return open_tensor, (os.getpid(), rebuild, arguments)


def open_tensor(sender: int, rebuild: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Rebuild a tensor that process `sender` shared.

    Raises:
        NotInstalledError: poolalloc does not serve this process.
    """
    from poolalloc._internal.installed import is_installed

    if not is_installed():
        raise NotInstalledError(
            f"process {sender} runs on poolalloc and shared a CUDA tensor with process {os.getpid()}, which does not, "
            "so it cannot be opened: call poolalloc.install() in this process too, before anything touches CUDA, or "
            "start the program with poolalloc run, which serves the processes that it starts"
        )
    return rebuild(*arguments)
