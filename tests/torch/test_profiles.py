"""The profiles that ship: installed by name from everywhere, and memory that goes back to others where one says so."""

import sys
from collections.abc import Callable

import pytest

from poolalloc.config import Config

REPORT = """
    import json, torch, poolalloc
    torch.empty(10, device="cuda")
    print(json.dumps(poolalloc.installation().config.to_conf()))
"""


@pytest.mark.parametrize("name", ["serving", "training"])
def test_a_profile_is_installed_by_its_name(on_sim: Callable, name: str) -> None:
    wanted = Config.load(name).to_conf()
    assert on_sim(f"    import poolalloc\n    poolalloc.install({name!r})\n" + REPORT).value == wanted


def test_a_profile_is_named_on_the_command_line_and_in_the_environment(on_sim: Callable) -> None:
    wanted = Config.load("finetuning").to_conf()
    run = (sys.executable, "-m", "poolalloc", "run")
    assert on_sim(REPORT, command=(*run, "--config", "finetuning")).value == wanted
    assert on_sim(REPORT, command=run, environment={"POOLALLOC_CONFIG": "finetuning"}).value == wanted


IDLE = """
    import json, time, torch, poolalloc
    poolalloc.install({name!r})
    blocks = [torch.empty(64 << 20, dtype=torch.uint8, device="cuda") for _ in range(32)]
    before = torch.cuda.mem_get_info()[0]
    del blocks
    torch.cuda.synchronize()
    patience = time.monotonic() + {seconds}
    while torch.cuda.mem_get_info()[0] < before + (2 << 30) - (128 << 20) and time.monotonic() < patience:
        time.sleep(0.05)
    print(json.dumps(torch.cuda.mem_get_info()[0] - before))
"""


def test_constrained_lets_others_have_what_lies_idle(on_sim: Callable) -> None:
    given_back = on_sim(IDLE.format(name="constrained", seconds=60)).value
    assert given_back >= (2 << 30) - (128 << 20)
    assert on_sim(IDLE.format(name="default", seconds=3)).value == 0


def test_constrained_leaves_a_tenth_of_the_device_alone(on_sim: Callable) -> None:
    program = """
    import torch, poolalloc
    poolalloc.install("constrained")
    kept = []
    while True:
        kept.append(torch.empty(64 << 20, dtype=torch.uint8, device="cuda"))
    """
    done = on_sim(program, memory="4 GiB", code=1)
    assert "OutOfMemoryError" in done.err
    assert done.report["devices"][0]["peak_used_bytes"] <= 0.9 * (4 << 30)
