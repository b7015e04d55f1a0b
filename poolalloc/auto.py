"""`import poolalloc.auto` installs poolalloc, with the options of POOLALLOC_CONFIG and POOLALLOC_CONF.

The first import of a program is the place for it: it raises AlreadyInitializedError once CUDA has been touched.
"""

from poolalloc import install

install()
