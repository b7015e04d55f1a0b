"""A program that was forked from the server (fork_server.py) cannot tell, but for what it has not to import."""

from __future__ import annotations

from collections.abc import Callable

import pytest

ABOUT_ITSELF = """
import json, os, sys, threading
import torch
print(json.dumps({
    "main": [__name__, __file__, sys.modules["__main__"].__file__, __spec__ is None],
    "names": sorted(globals()),
    "arguments": sys.argv,
    "path": sys.path,
    "environment": {name: value for name, value in os.environ.items() if name != "POOLALLOC_SIM_OWNER"
                    and "REPORT" not in name},
    "session": os.getsid(0) == os.getpid(),
    "threads": threading.active_count(),
    "stdin": sys.stdin.read(),
    "terminal": sys.stdout.isatty(),
    "device": torch.cuda.get_device_properties(0).total_memory,
    "devices": torch.cuda.device_count(),
}))
"""


def test_it_finds_what_a_fresh_process_would_find(on_sim: Callable) -> None:
    settings = {
        "memory": "3 GiB",
        "devices": 2,
        "arguments": ("a", "b c"),
        "environment": {"POOLALLOC_CONF": "trim_low:0"},
    }
    forked = on_sim(ABOUT_ITSELF, **settings).value
    fresh = on_sim(ABOUT_ITSELF, fresh=True, **settings).value
    assert forked == fresh
    assert forked["devices"] == 2


@pytest.mark.parametrize("end", ["raise KeyError('gone')", "import sys; sys.exit(3)", "import os; os.abort()", "pass"])
def test_it_ends_as_a_fresh_process_would(on_sim: Callable, end: str) -> None:
    program = f"import atexit, torch\natexit.register(print, 'the end')\ntorch.ones(1, device='cuda')\n{end}"
    forked = on_sim(program, code=None)
    fresh = on_sim(program, code=None, fresh=True)
    assert (forked.code, forked.out) == (fresh.code, fresh.out)
    assert forked.err.splitlines()[-1:] == fresh.err.splitlines()[-1:]
    assert forked.report.get("devices") == fresh.report.get("devices")


def test_programs_leave_nothing_to_those_that_follow(on_sim: Callable) -> None:
    on_sim("import torch, poolalloc, os; poolalloc.install(); os.environ['LEFT'] = '1'; torch.ones(1, device='cuda')")
    on_sim("import sys, os, torch; assert 'poolalloc' not in sys.modules and 'LEFT' not in os.environ")
