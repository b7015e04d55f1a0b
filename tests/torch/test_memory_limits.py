"""Callbacks, limits and trimming under real torch, through the bridge and through the plain plugin."""

from collections.abc import Callable

import pytest

PROGRAM = """
import poolalloc, torch
poolalloc.install(bridge={bridge})
MiB = 2**20


def block(size):
    return torch.empty(size * MiB, dtype=torch.uint8, device="cuda")


"""


@pytest.fixture(params=[True, False], ids=["bridge", "plugin"])
def program(request: pytest.FixtureRequest) -> str:
    return PROGRAM.format(bridge=request.param)


def test_a_cache_of_tensors_is_given_up_when_memory_runs_out(on_sim: Callable, program: str) -> None:
    on_sim(
        program
        + """
cache = {}
asked = []


@poolalloc.on_oom
def drop(device, size):
    asked.append((device, size))
    if cache:
        cache.popitem()
        return True


assert drop.__name__ == "drop"
for name in range(9):
    cache[name] = block(100)
big = block(500)
assert asked == [(0, 500 * MiB)] * len(asked) and len(cache) == 9 - len(asked) == 5, (asked, len(cache))
stats = poolalloc.memory_stats()
assert (stats["after_callbacks"], stats["out_of_memory"]) == (1, 0)
assert drop.remove() and not drop.remove()
try:
    block(500)
except RuntimeError as error:
    assert "out of memory" in str(error)
else:
    raise AssertionError
assert len(cache) == 5
with poolalloc.on_oom(lambda device, size: cache.clear()):
    more = block(500)
assert not cache
from poolalloc import _core
_core.validate()
""",
        memory="1 GiB",
    )


def test_in_the_backward_pass_a_callback_may_use_torch(on_sim: Callable, program: str) -> None:
    # Ends without the interpreter's finalization, which any Python hook in a backward pass can make end with "terminate
    # called", under torch's own allocator too.
    outcome = on_sim(
        program
        + """
import os
cache = [block(300)]


@poolalloc.on_oom
def drop(device, size):
    cache.clear()
    torch.zeros(10, device="cuda").add_(1)
    torch.cuda.empty_cache()


x = torch.ones(50 * MiB, device="cuda", requires_grad=True)  # 200 MiB, and as much for y and its gradients
y = x * x
y.backward(torch.ones_like(y))
assert not cache and x.grad is not None
print("checked", flush=True)
os._exit(0)
""",
        memory="1 GiB",
    )
    assert outcome.out == "checked\n"


def test_an_error_in_a_callback_hides_nothing(on_sim: Callable, program: str) -> None:
    outcome = on_sim(
        program
        + """
@poolalloc.on_oom
def broken(device, size):
    raise KeyError("no such cache")


try:
    block(2000)
except RuntimeError as error:
    print(type(error).__name__)
""",
        memory="1 GiB",
    )
    assert outcome.err == ""  # more than the device has: nobody was asked
    outcome = on_sim(
        program
        + """
kept = block(600)


@poolalloc.on_oom
def broken(device, size):
    raise KeyError("no such cache")


try:
    block(600)
except RuntimeError as error:
    assert "asked for 600 MiB" in str(error)
""",
        memory="1 GiB",
    )
    assert "no such cache" in outcome.err
    assert "broken" in outcome.err


def test_callbacks_may_be_added_before_cuda_is_used_and_a_child_may_use_it_then(on_sim: Callable, program: str) -> None:
    on_sim(
        program
        + """
import os
poolalloc.on_oom(lambda device, size: None)
pid = os.fork()
if pid == 0:
    code = 1
    try:
        block(10)
        code = 0
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
block(10)
"""
    )


def test_the_program_may_end_with_callbacks_in_place_and_tensors_alive(on_sim: Callable, program: str) -> None:
    outcome = on_sim(
        program
        + """
kept = [block(10)]
poolalloc.on_oom(lambda device, size: kept.clear())
"""
    )
    assert outcome.err == ""


def test_limits_change_while_the_program_runs(on_sim: Callable, program: str) -> None:
    on_sim(
        program
        + """
assert poolalloc.memory_limit() is None and poolalloc.memory_fraction() == 1
kept = block(200)
del kept
poolalloc.set_memory_limit("100 MiB")
assert poolalloc.memory_limit() == 100 * MiB
free, total = torch.cuda.mem_get_info()
assert total - free <= 100 * MiB, (free, total)
try:
    block(101)
except RuntimeError as error:
    assert "memory_limit" in str(error)
else:
    raise AssertionError
poolalloc.set_memory_limit(None, device="cuda:0")
kept = block(101)
poolalloc.set_memory_fraction(0.25)
assert poolalloc.memory_stats()["limit_bytes"] == total // 4
try:
    more = block(200)
except RuntimeError:
    pass
else:
    raise AssertionError
torch.cuda.set_per_process_memory_fraction(1.0)
assert poolalloc.memory_fraction() == 1
more = block(200)
for wrong, error in (("many", ValueError), (0, ValueError), (-1, ValueError), (1000, poolalloc.UsageError)):
    try:
        poolalloc.set_memory_limit(wrong)
    except error:
        pass
    else:
        raise AssertionError(wrong)
""",
        memory="1 GiB",
    )


def test_trimmed_memory_is_seen_by_others(on_sim: Callable, program: str) -> None:
    on_sim(
        program
        + """
def used():
    free, total = torch.cuda.mem_get_info()
    return total - free


base = used()
kept = block(100)
gone = block(400)
del gone
assert used() - base == 500 * MiB
trimmed = poolalloc.trim("300 MiB")  # in spans, so perhaps more than was asked for
assert 200 * MiB <= trimmed <= 400 * MiB
assert used() - base == 500 * MiB - trimmed
assert poolalloc.trim() == 400 * MiB - trimmed
assert used() - base == 100 * MiB == poolalloc.memory_stats()["reserved"]["current"]
side = torch.cuda.Stream()
with torch.cuda.stream(side):
    gone = block(100)
    del gone
assert poolalloc.trim(wait=True) == 100 * MiB
""",
        memory="1 GiB",
    )
