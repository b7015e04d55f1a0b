"""`import poolalloc.auto` installs poolalloc, with the options of POOLALLOC_CONFIG and POOLALLOC_CONF.

The first import of a program is the place for it: it raises AlreadyInitializedError once CUDA has been touched. An
install() that is going on and imports torch is left to do it.
"""

from poolalloc import install
from poolalloc.installing import in_progress

__all__ = []

if not in_progress():
    install()
