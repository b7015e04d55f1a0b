"""`poolalloc build-bridge`: compiles the bridge to torch ahead of its first use, for images and for many processes."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from poolalloc.cli.common import BAD_INPUT, NO, Json, fail, print_json


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("build-bridge")(build_bridge)


def build_bridge(
    force: Annotated[bool, typer.Option("--force", help="Build it again even if it is there.")] = False,
    json: Json = False,
) -> None:
    """Compile the bridge for the installed torch, so that the first poolalloc.install() need not.

    It takes a C++ compiler and some seconds. It is kept in the user's cache folder; POOLALLOC_CACHE_DIR names another.

    Example: poolalloc build-bridge
    """
    from poolalloc import installing
    from poolalloc._internal import bridge
    from poolalloc.errors import TorchError

    try:
        torch = installing.import_torch()
        started = time.monotonic()
        library = bridge.build(torch, force=force)
    except (TorchError, bridge.BridgeError) as error:
        fail(str(error), BAD_INPUT if isinstance(error, bridge.NotKeptError) else NO)
    seconds = time.monotonic() - started
    if json:
        result = {
            "library": str(library.path),
            "torch": torch.__version__,
            "built": library.built,
            "seconds": seconds,
        }
        print_json(result)
    else:
        done = f"built in {seconds:.1f} s" if library.built else "was built before"
        print(f"bridge for torch {torch.__version__}: {done}\n{library.path}")
