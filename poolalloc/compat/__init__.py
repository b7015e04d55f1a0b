"""Other libraries' ways of putting memory to sleep, served by poolalloc.sleeping: change one import.

    from poolalloc.compat.torch_memory_saver import torch_memory_saver
    from poolalloc.compat.vllm_cumem import CuMemAllocator

Each module has the public names and arguments of the library it is named after, and says what it leaves out. They may
import the top level of poolalloc. The manual page is docs/sleep.md.
"""

from __future__ import annotations

__all__: list[str] = []
