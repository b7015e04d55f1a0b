"""What torch's plain pluggable door allows and what it does not: the list of docs/install.md, tried one by one.

A test that fails here because torch learned something is good news: take the line out of the list.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from poolalloc.installing import MISSING

pytestmark = pytest.mark.torch_interface

ROOT = Path(__file__).parents[2]

WORKS = {
    "memory_fraction": "torch.cuda.set_per_process_memory_fraction(0.5)",
    "empty_cache": "torch.cuda.empty_cache()",
    "mem_get_info": "assert torch.cuda.mem_get_info()[1] == 8 * 2**30",
    "backend": "assert torch.cuda.memory.get_allocator_backend() == 'pluggable'",
    "accelerator": "torch.accelerator.empty_cache()",
    "raw_alloc": "torch.cuda.caching_allocator_delete(torch.cuda.caching_allocator_alloc(1000))",
    "pinned": "torch.empty(1000, pin_memory=True).to('cuda', non_blocking=True)",
    "copy": "tensor.cpu(); tensor.clone(); torch.empty(5).cuda()",
    "resize": "tensor.resize_(5000)",
    "checkpoint": "torch.utils.checkpoint.checkpoint(lambda x: x * 2, tensor, use_reentrant=False)",
}

RAISES = {
    "memory_stats": "torch.cuda.memory_stats()",
    "memory_allocated": "torch.cuda.memory_allocated()",
    "max_memory_allocated": "torch.cuda.max_memory_allocated()",
    "memory_reserved": "torch.cuda.memory_reserved()",
    "memory_summary": "torch.cuda.memory_summary()",
    "accelerator_memory": "torch.accelerator.memory_allocated()",
    "reset_peak_memory_stats": "torch.cuda.reset_peak_memory_stats()",
    "reset_accumulated_memory_stats": "torch.cuda.reset_accumulated_memory_stats()",
    "memory_snapshot": "torch.cuda.memory_snapshot()",
    "_snapshot": "torch.cuda.memory._snapshot()",
    "_record_memory_history": "torch.cuda.memory._record_memory_history()",
    "get_per_process_memory_fraction": "torch.cuda.get_per_process_memory_fraction()",
    "MemPool": "torch.cuda.MemPool()",
    "IPC": "tensor.untyped_storage()._share_cuda_()",
    "cudnn.benchmark": (
        "torch.backends.cudnn.benchmark = True;"
        "torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8, device='cuda'), torch.ones(4, 3, 3, 3, device='cuda'))"
    ),
    "graph trees": "torch._C._cuda_checkPoolLiveAllocations(0, (0, 1), set())",
}

RUN = """
import json, sys
import poolalloc, torch, torch.utils.checkpoint
poolalloc.install(bridge=False)
tensor = torch.ones(1000, device="cuda", requires_grad=False)
outcomes = {}
for name, line in json.loads(sys.argv[1]).items():
    try:
        exec(line)
        outcomes[name] = None
    except Exception as error:
        outcomes[name] = f"{type(error).__name__}: {error}"
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize(("lines", "raises"), [(WORKS, False), (RAISES, True)], ids=["works", "raises"])
def test_what_works_and_what_raises(on_sim: Callable, lines: dict[str, str], raises: bool) -> None:
    outcomes = on_sim(RUN, arguments=(json.dumps(lines),)).value
    wrong = {name: outcome for name, outcome in outcomes.items() if (outcome is not None) != raises}
    assert not wrong
    if raises:
        assert all(outcome.startswith("RuntimeError") for outcome in outcomes.values()), outcomes


def test_out_of_memory_is_a_plain_runtime_error(on_sim: Callable) -> None:
    on_sim(
        """
        import poolalloc, torch
        poolalloc.install(bridge=False)
        try:
            torch.empty(2**40, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            raise AssertionError("torch.OutOfMemoryError works now: take it out of the list")
        except RuntimeError as error:
            assert "CUDA out of memory. Tried to allocate 1024.00 GiB" in str(error)
        """
    )


def test_the_profiler_sees_no_memory(on_sim: Callable) -> None:
    on_sim(
        """
        import poolalloc, torch
        poolalloc.install(bridge=False)
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            tensor = torch.empty(2**20, dtype=torch.uint8, device="cuda")
        events = profile.key_averages()
        assert all(getattr(event, "self_device_memory_usage", 0) == 0 for event in events)
        """
    )


def test_the_manual_lists_what_is_missing() -> None:
    manual = (ROOT / "docs" / "install.md").read_text().replace("`", "")
    section = manual.split("## What does not work under the plain plugin")[1]
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", section, re.MULTILINE))
    del rows["feature of torch"], rows["---"]
    assert rows == MISSING
