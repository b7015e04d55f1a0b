"""After an illegal memory access every call of CUDA fails: the program hears of that, and ends in its own time."""

from collections.abc import Callable

import pytest

LOSE = """
import ctypes, json
import poolalloc, torch
poolalloc.install({config})
from poolalloc import _core
lose = ctypes.CDLL(None).simgpu_lose_devices

allocate = torch._C._cuda_cudaCachingAllocator_raw_alloc  # straight to the allocator: torch asks the device nothing

def error_of(ask):
    try:
        ask()
    except RuntimeError as error:
        assert not isinstance(error, torch.OutOfMemoryError), error
        assert isinstance(error, getattr(torch, "AcceleratorError", RuntimeError)), type(error)
        return str(error).splitlines()[0]
    raise AssertionError("no error")
"""


@pytest.mark.parametrize("config", ["", "poolalloc.Config(trim_after=0.01, reserve_ahead='8 MiB')"])
def test_the_error_is_torchs_own_and_nothing_else_goes_wrong(on_sim: Callable, config: str) -> None:
    outcome = on_sim(
        LOSE.format(config=config)
        + """
kept = torch.empty(2**20, device="cuda")
small = torch.empty(8, device="cuda")
lose()
said = error_of(lambda: allocate(64 * 2**20, 0))
del small
torch._C._cuda_cudaCachingAllocator_raw_delete(allocate(32, 0))  # needs no driver
torch.cuda.empty_cache()
assert poolalloc.memory_stats(0)["live_blocks"] == 1
_core.validate()
assert _core.plugin_state()["failures"] == 0
print(json.dumps(said))
"""
    )
    assert "illegal memory access" in outcome.value


def test_a_device_that_is_lost_is_not_said_to_be_full(on_sim: Callable) -> None:
    outcome = on_sim(
        LOSE.format(config="")
        + """
side = torch.cuda.Stream()
tensor = torch.empty(900 * 2**20, dtype=torch.uint8, device="cuda")
tensor.record_stream(side)
torch.empty(8, device="cuda").zero_()
lose()
del tensor  # waits for an event that will never complete
print(json.dumps(error_of(lambda: allocate(192 * 2**20, 0))))
""",
        memory="1 GiB",
    )
    assert "illegal memory access" in outcome.value
