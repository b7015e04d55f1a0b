"""Processes that a program under `poolalloc run` starts: they are served as the program is.

Python runs a module named sitecustomize when it starts. `run` puts a folder that has one first on the PYTHONPATH of its
children, and says in POOLALLOC_CHILDREN what they are to do; it waits until the process imports torch, and installs
poolalloc then. Nothing is put into site-packages, so that other processes never see it.

Not here: children of fork(), which have what their parent had.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from poolalloc.config import Config

VARIABLE = "POOLALLOC_CHILDREN"
_FOLDER = str(Path(__file__).parent)


def cover(
    config: Config,
    *,
    plan: str | None = None,
    record: str | None = None,
    stacks: bool = False,
    metrics: Path | None = None,
) -> None:
    """Let processes that this one starts from now on be served with this configuration.

    They record if the name of the recording has the number of the process in it (%p); else it is this process's alone.
    `metrics` is the folder where they show their statistics (workers.py).
    """
    wish = {
        "conf": (config if "%p" in config.record else config.unrecorded()).to_conf(),
        "plan": None if plan is None else os.path.abspath(plan),
        "record": os.path.abspath(record) if record is not None and "%p" in record else None,
        "stacks": stacks,
        "metrics": None if metrics is None else str(metrics),
    }
    os.environ[VARIABLE] = json.dumps(wish)
    os.environ["PYTHONPATH"] = os.pathsep.join([_FOLDER, *_without_folder()])


def leave_alone() -> None:
    """Let processes that this one starts be as it finds them, also where it is itself the child of a covered one."""
    os.environ.pop(VARIABLE, None)
    if rest := _without_folder():
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)


def _without_folder() -> list[str]:
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder not in ("", _FOLDER)]


def install_in_child() -> None:
    """Install poolalloc as the parent wished, at the end of torch's import. What goes wrong is a line on stderr."""
    from poolalloc import installing

    if installing.in_progress():  # the program's own install() imports torch
        return
    try:
        wish = json.loads(os.environ[VARIABLE])
        # A Config, so that no variable comes on top of it: the parent's has them already.
        installing.install_at_end_of_import(Config.from_conf(wish["conf"]), wish["plan"])
        if wish["record"] is not None:
            from poolalloc import recording

            recording.record(wish["record"], stacks=wish["stacks"])
        if wish["metrics"] is not None:
            from poolalloc._internal import workers

            workers.show(Path(wish["metrics"]))
    except Exception as error:  # whatever it is, the program goes on without poolalloc
        text = " ".join(str(error).split())
        print(f"poolalloc: process {os.getpid()} is not served: {text}", file=sys.stderr, flush=True)
