"""A child of fork() must not touch the device of its parent, and must not crash or hang for it."""

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.torch_interface

FORK = """
import ctypes, os, sys
import poolalloc, torch
poolalloc.install()
{before}
pid = os.fork()
if pid == 0:
    try:
{child}
        code = 0
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
        code = 1
    sys.stdout.flush()
    os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
{after}
"""


def program(before: str, child: str, after: str = "") -> str:
    indented = "\n".join("        " + line for line in child.strip().splitlines())
    return FORK.format(before=before, child=indented, after=after)


def test_a_child_frees_and_asks_without_touching_the_device(on_sim: Callable) -> None:
    outcome = on_sim(
        program(
            "tensor = torch.empty(2**20, device='cuda'); address = tensor.data_ptr()",
            """
from poolalloc import _core
assert _core.plugin_state()["forked"]
del tensor
malloc = ctypes.CDLL(_core.library_path()).poolalloc_empty_cache()
for call in (poolalloc.memory_stats, poolalloc.empty_cache, poolalloc.fragmentation):
    try:
        call()
    except poolalloc.UsageError as error:
        assert "fork" in str(error) and "spawn" in str(error)
    else:
        raise AssertionError(call)
try:
    torch.empty(1, device="cuda")
except RuntimeError as error:
    assert "fork" in str(error), error
else:
    raise AssertionError("CUDA in a forked child")
assert _core.plugin_state()["failures"] == 0
""",
            "from poolalloc import _core; _core.validate(); assert poolalloc.memory_stats()['live_blocks'] == 1",
        )
    )
    assert outcome.report["violations"] == {}


def test_a_child_may_use_cuda_where_the_parent_had_not(on_sim: Callable) -> None:
    on_sim(
        program(
            "",
            """
tensor = torch.empty(2**20, device="cuda")
assert poolalloc.memory_stats()["live_blocks"] == 1
""",
        )
    )


def test_workers_of_a_data_loader_are_left_alone(on_sim: Callable) -> None:
    on_sim(
        """
        import poolalloc, torch
        poolalloc.install()
        from torch.utils.data import DataLoader, TensorDataset
        model = torch.nn.Linear(8, 8).cuda()
        data = TensorDataset(torch.zeros(64, 8))
        for (batch,) in DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context="fork", pin_memory=True):
            model(batch.cuda(non_blocking=True)).sum().backward()
        from poolalloc import _core
        _core.validate()
        """
    )


def test_a_background_thread_stays_with_the_parent_and_ends_before_the_process(on_sim: Callable) -> None:
    environment = {"POOLALLOC_CONF": "reserve_ahead:8MiB,trim_after:0.02,trim_high:1GiB"}
    text = program(
        "tensor = torch.empty(2**20, device='cuda')",
        "del tensor; ctypes.CDLL(None).exit(0)  # with every exit handler",
        "tensor = torch.empty(2**22, device='cuda'); from poolalloc import _core; _core.validate()",
    )
    outcome = on_sim(text, environment=environment)
    assert outcome.report["violations"] == {}
    assert outcome.err == ""
    text = program("", "torch.empty(2**20, device='cuda')", "torch.empty(2**20, device='cuda')")
    on_sim(text, environment=environment)


def test_a_childs_child_keeps_the_files_of_the_child(on_sim: Callable) -> None:
    # What the child closes of its parent's, its own child must not close again: another file has that number by then.
    on_sim(
        program(
            "tensor = torch.empty(2**20, device='cuda'); tensor.untyped_storage()._share_cuda_()",
            """
files = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
pid = os.fork()
if pid == 0:
    for file in files:
        os.fstat(file)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""",
        )
    )
