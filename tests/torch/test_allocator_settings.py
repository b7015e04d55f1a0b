"""torch's allocator settings under poolalloc, from outside and at run time: honoured, or named in one warning."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch_interface

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("POOLALLOC_TEST_PYTHON", sys.executable)

PRELUDE = """
import json, sys, warnings
warnings.simplefilter("always")
caught = []
warnings.showwarning = lambda message, category, file, line, *rest: caught.append((str(message), file, line))
import poolalloc, torch
assert poolalloc.install(bridge=True).backend == "bridge"
MiB = 2**20
def named():
    return [text.split(" setting ")[1].split(" ")[0] for text, *_ in caught if "has no effect" in text]
"""


@pytest.fixture
def run(on_sim: Callable) -> Callable:
    """run(program, conf) with PYTORCH_ALLOC_CONF set."""

    def run(program: str, conf: str | None = None, **settings: object) -> object:
        environment = {"PYTHONPATH": str(ROOT)}
        if conf is not None:
            environment |= {"PYTORCH_ALLOC_CONF": conf}
        return on_sim(PRELUDE + program, command=(PYTHON,), environment=environment, **settings)

    return run


def test_a_fraction_in_the_environment_is_the_limit(run: Callable) -> None:
    run(
        """
assert not torch.cuda.is_initialized()
torch.empty(MiB, device="cuda:1")
assert [torch.cuda.get_per_process_memory_fraction(device) for device in (0, 1)] == [0.25, 0.25]
assert poolalloc.memory_stats(1)["limit_bytes"] == 2**31
try:
    torch.empty(2100 * MiB, dtype=torch.uint8, device="cuda:1")
except torch.OutOfMemoryError:
    pass
else:
    raise AssertionError("more than the fraction")
assert named() == [], caught
""",
        "per_process_memory_fraction:0.25",
        devices=2,
    )


def test_settings_without_effect_are_named_once(run: Callable) -> None:
    run(
        """
torch.ones(1, device="cuda")
assert named() == ["max_split_size_mb", "roundup_power2_divisions", "garbage_collection_threshold"], caught
torch._C._accelerator_setAllocatorSettings("max_split_size_mb:200,max_non_split_rounding_mb:100")
torch._C._accelerator_setAllocatorSettings("max_non_split_rounding_mb:100,pinned_use_background_threads:True")
assert named()[3:] == ["max_non_split_rounding_mb"], caught
assert caught[-1][1] == __file__, "the warning points to the program"
""",
        "max_split_size_mb:100,roundup_power2_divisions:[256:2,>:4],garbage_collection_threshold:0.8,expandable_segments:True",
    )


def test_settings_at_run_time(run: Callable) -> None:
    run(
        """
kept = torch.empty(100 * MiB, dtype=torch.uint8, device="cuda")
memory = torch.cuda.memory
memory._set_allocator_settings("per_process_memory_fraction:0.5")
assert torch.cuda.get_per_process_memory_fraction() == 0.5
memory._set_allocator_settings("expandable_segments:True")
assert torch.cuda.get_per_process_memory_fraction() == 0.5, "only what is named changes"
assert named() == []
for wrong in ("no_such_key:1", "per_process_memory_fraction:2"):
    try:
        memory._set_allocator_settings(wrong)
    except Exception:
        pass
    else:
        raise AssertionError(wrong)
assert torch.cuda.get_per_process_memory_fraction() == 0.5
"""
    )


def test_whole_allocations_at_run_time(run: Callable) -> None:
    # What libraries ask for that call cudaIpcGetMemHandle, and set back afterwards.
    run(
        """
import ctypes
runtime = ctypes.CDLL(None)
def has_handle(tensor):
    handle = (ctypes.c_char * 64)()
    return runtime.cudaIpcGetMemHandle(handle, ctypes.c_void_p(tensor.data_ptr())) == 0
def block(size):
    return torch.empty(size * MiB, dtype=torch.uint8, device="cuda")
memory = torch.cuda.memory
before = block(30)
idle = block(50)
del idle
memory._set_allocator_settings("expandable_segments:False")
whole = block(50)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = block(40).add_(1)
memory._set_allocator_settings("expandable_segments:True")
after = block(20)
assert [has_handle(each) for each in (before, whole, captured, after)] == [False, True, True, False]
kinds = {(segment["is_expandable"], segment["segment_pool_id"] != (0, 0)) for segment in memory.memory_snapshot()}
assert kinds == {(True, False), (False, False), (False, True)}, kinds
assert named() == ["expandable_segments"], "that of the environment"
graph.replay()
del graph, captured, whole
torch.cuda.synchronize()
torch.cuda.empty_cache()
assert torch.cuda.memory_reserved() <= 80 * MiB, torch.cuda.memory_reserved()
poolalloc._core.validate()
""",
        "expandable_segments:False",
    )


def test_a_fraction_of_nothing_adds_nothing(run: Callable) -> None:
    # As torch's own allocator: what is held serves on, and nothing comes to it.
    run(
        """
kept = torch.empty(100 * MiB, dtype=torch.uint8, device="cuda")
held = torch.cuda.memory_reserved()
torch.cuda.set_per_process_memory_fraction(0.0)
assert torch.cuda.get_per_process_memory_fraction() == 0.0
kept.add_(1)
try:
    torch.empty(200 * MiB, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    assert "200 MiB" in str(error)
else:
    raise AssertionError("memory from nowhere")
assert torch.cuda.memory_reserved() <= held
torch.cuda.set_per_process_memory_fraction(1.0)
torch.empty(200 * MiB, dtype=torch.uint8, device="cuda")
"""
    )


def test_a_wrong_environment_is_torchs_error(run: Callable) -> None:
    outcome = run('torch.ones(1, device="cuda")', "no_such_key:1", code=None)
    assert outcome.code != 0
    assert "no_such_key" in outcome.err


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_backend_in_the_environment_does_no_harm(on_sim: Callable, variable: str) -> None:
    program = """
torch.ones(1).pin_memory()  # reads the settings too
torch.ones(1, device="cuda")
assert named() == ["backend"], caught
assert torch.cuda.get_allocator_backend() == "pluggable"
torch._C._accelerator_setAllocatorSettings("backend:native")
assert named() == ["backend"] and torch.cuda.get_allocator_backend() == "pluggable"
assert poolalloc.memory_stats()["live_blocks"] == 0 and poolalloc.memory_stats()["allocations"] == 1
"""
    conf = {variable: "backend:cudaMallocAsync,pinned_use_background_threads:False", "PYTHONPATH": str(ROOT)}
    on_sim(PRELUDE + program, command=(PYTHON,), environment=conf)


def test_the_plain_plugin_survives_a_backend_and_says_what_has_no_effect(on_sim: Callable) -> None:
    program = (
        PRELUDE.replace("bridge=True", "bridge=False").replace('== "bridge"', '== "plugin"')
        + """
import os
torch.ones(1).pin_memory()
torch.ones(1, device="cuda")
assert named() == ["backend", "PYTORCH_NO_CUDA_MEMORY_CACHING"], caught
assert caught[-1][1] == __file__, caught
assert os.environ["PYTORCH_ALLOC_CONF"] == "pinned_use_background_threads:False"
"""
    )
    conf = {"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync,pinned_use_background_threads:False"}
    on_sim(program, command=(PYTHON,), environment={**conf, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def test_without_caching_nothing_is_kept(on_sim: Callable) -> None:
    program = """
free = lambda: torch.cuda.mem_get_info()[0]
torch.cuda.init()
before = free()
tensor = torch.empty(50 * MiB, dtype=torch.uint8, device="cuda")
assert free() == before - 50 * MiB and torch.cuda.memory_reserved() == 0
torch.cuda.caching_allocator_enable(True)  # the variable is stronger, as under torch
del tensor
assert free() == before
other = torch.empty(50 * MiB, dtype=torch.uint8, device="cuda")
assert torch.cuda.memory_reserved() == 0
"""
    on_sim(PRELUDE + program, command=(PYTHON,), environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def test_every_setting_and_variable_of_torch_is_known(run: Callable) -> None:
    """Of the torch that is here: what its parser takes is in the table of settings.cpp and in the manual."""
    described = run(
        """
import ctypes
settings = ctypes.CDLL(str(poolalloc.installation().library)).poolalloc_bridge_settings
settings.restype = ctypes.c_char_p
print(json.dumps([settings().decode(), torch.__file__]))
"""
    ).value
    rules = dict(line.partition(" ")[::2] for line in described[0].splitlines())
    assert {"max_split_size_mb", "per_process_memory_fraction", "backend"} <= set(rules), rules
    assert [key for key, rule in rules.items() if rule == "unknown"] == []
    manual = (ROOT / "docs" / "torch-interface.md").read_text().split("## Settings")[1].split("\n## ")[0]
    named, begun = (re.findall(rf"`([a-z_0-9]+){rest}`", manual) for rest in ("", r"\.\.\."))
    assert [key for key in rules if key not in named and not key.startswith(tuple(begun))] == []
    library = (Path(described[1]).parent / "lib" / "libc10_cuda.so").read_bytes()
    variables = {name.decode() for name in re.findall(rb"\0(PYTORCH_[A-Z_]+)(?=\0)", library)}
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING" in variables
    others = {"PYTORCH_USE_CUDA_DSA", "PYTORCH_CUDA_DSA_STACKTRACING"}  # assertions in kernels, no memory
    of_rocm = {name for name in variables if "HIP" in name}
    assert [name for name in variables - others - of_rocm if f"`{name}`" not in manual] == []
