"""What all tests with torch share: the process that their programs are forked from."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fork_server import ForkServer

from poolalloc.sim import sim_environment


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """The process that the programs of this session are forked from."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("POOLALLOC_", "PYTORCH_"))}
    server = ForkServer(sim_environment(base=plain))
    yield server
    server.close()
