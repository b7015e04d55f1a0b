"""torch.compile's CUDA graph trees on poolalloc: the same programs as on torch's own allocator, with the same figures.

Requested bytes do not depend on how an allocator rounds, so what a program holds after each step must be equal to the
byte. (Sizes are multiples of 512 bytes: torch's own allocator counts a block that was put back as rounded.)

POOLALLOC_TEST_PYTHON names another interpreter, with another torch, to try it on.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch_interface

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("POOLALLOC_TEST_PYTHON", sys.executable)

PRELUDE = """
import gc, json, sys
import torch
if {poolalloc}:
    import poolalloc
    assert poolalloc.install(bridge=True).backend == "bridge"
import torch._inductor.config
from torch._inductor import cudagraph_trees
torch._inductor.config.fx_graph_cache = False
torch._inductor.config.triton.slow_path_cudagraph_asserts = False
torch._inductor.config.triton.fast_path_cudagraph_asserts = False
COMPILED = {compiled}
MiB = 2**20
seen = []
def note(*facts):
    torch.cuda.synchronize()
    gc.collect()
    stats = torch.cuda.memory_stats()
    seen.append([*facts, stats["requested_bytes.all.current"], stats["allocation.all.current"]])
def finish(least_checkpoints=0):
    manager = cudagraph_trees.get_manager(0, create_if_none_exists=False)
    assert manager is not None, "no graph was recorded"
    def nodes(node):
        return 1 + sum(nodes(child) for children in node.children.values() for child in children)
    recorded = sum(nodes(root) for root in manager.get_roots())
    assert manager.debug_checkpointing_counter >= least_checkpoints, manager.debug_checkpointing_counter
    note(recorded, manager.debug_checkpointing_counter)
    if {poolalloc}:
        from poolalloc import _core
        _core.validate()
        assert _core.plugin_state()["failures"] == 0, _core.plugin_state()["last_failure"]
    print(json.dumps(seen))
"""

TRAINING = """
class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 300), torch.nn.Linear(300, 64)
    def forward(self, x):
        return self.second(torch.relu(self.first(x)) * 0.5) + x
network = torch.nn.Sequential(Network(), Network()).cuda()
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
compiled = torch.compile(network, **COMPILED)
for step in range(6):
    torch.compiler.cudagraph_mark_step_begin()
    loss = compiled(torch.ones(100, 64, device="cuda")).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    note(step)
del loss
finish()
"""

PATHS = """
@torch.compile(**COMPILED)
def first(x):
    return x * 2, (x + 1).sum(0)
@torch.compile(**COMPILED)
def second(y):
    return torch.relu(y - 1).repeat(3, 1) + 1
@torch.compile(**COMPILED)
def third(y):
    return (y @ y.t()) * 3, y + 5
x = torch.ones(512, 256, device="cuda")
with torch.no_grad():
    for step in range(12):
        torch.compiler.cudagraph_mark_step_begin()
        y, total = first(x)
        if step % 3 == 0:
            del total
        if step % 2:
            z = second(y)
            if step % 4 == 1:
                del y
                w = third(z)
        else:
            z, w = third(y)
            del w
            z = second(z)
        note(step, z.shape[0])
    del z
    finish(least_checkpoints=2)
"""

LIVE_OUTPUTS = """
@torch.compile(**COMPILED)
def step(x, state):
    new = torch.sigmoid(x @ state) + x
    return new, new.sum(1)
x, state = torch.ones(256, 256, device="cuda"), torch.ones(256, 256, device="cuda")
kept = []
with torch.no_grad():
    for number in range(8):
        torch.compiler.cudagraph_mark_step_begin()
        state, total = step(x, state)
        kept.append(state.clone() if number % 2 else total.clone())
        state = state.clone()
        note(number)
    # Two generations live at once: the second is recorded on top of the outputs of the first.
    torch.compiler.cudagraph_mark_step_begin()
    for number in range(4):
        one, total = step(x, x)
        two, other = step(x, one)
        note(number)
        if number == 1:
            del total, other
    del one, two
    kept.clear()
    finish()
"""

CHANGING_SHAPES = """
@torch.compile(dynamic=False, **COMPILED)
def run(x):
    return (x.float() * 3).cumsum(0), x + 1
with torch.no_grad():
    for step, rows in enumerate([100, 200, 100, 300, 200, 300, 100, 200]):
        torch.compiler.cudagraph_mark_step_begin()
        a, b = run(torch.ones(rows, 700, device="cuda"))
        note(rows, list(a.shape))
        del a
    del b
    finish()
"""

PROGRAMS = {"training": TRAINING, "paths": PATHS, "live outputs": LIVE_OUTPUTS, "changing shapes": CHANGING_SHAPES}
INDUCTOR = "torch._inductor.compile_fx"
CUDAGRAPHS = '{"backend": "cudagraphs"}'
REDUCE_OVERHEAD = '{"mode": "reduce-overhead"}'


@pytest.fixture
def on_both(on_sim: Callable) -> Callable:
    """on_both(program, compiled) runs it on torch's own allocator and on poolalloc; returns what each saw."""

    def run(program: str, compiled: str) -> list[object]:
        outcomes = []
        for poolalloc in (False, True):
            prelude = PRELUDE.format(poolalloc=poolalloc, compiled=compiled)
            environment = {"PYTHONPATH": str(ROOT)}
            outcome = on_sim(prelude + program, command=(PYTHON,), environment=environment, imports=(INDUCTOR,))
            assert outcome.report["violations"] == {}
            outcomes.append(outcome.value)
        return outcomes

    return run


@pytest.mark.parametrize("program", PROGRAMS)
def test_graph_trees_hold_what_they_hold_on_torchs_own_allocator(on_both: Callable, program: str) -> None:
    builtin, ours = on_both(PROGRAMS[program], CUDAGRAPHS)
    assert ours == builtin


def test_reduce_overhead_with_inductor(on_both: Callable) -> None:
    builtin, ours = on_both(TRAINING, REDUCE_OVERHEAD)
    assert ours == builtin


DIRECT = """
import ctypes
torch._C._set_cached_tensors_enabled(True)
device, stream = 0, torch.cuda.Stream()
pool = torch.cuda.graph_pool_handle()
sizes = [5120, 3 * MiB, MiB // 2]
source = [torch.full((size,), value, dtype=torch.uint8).cuda() for value, size in enumerate(sizes, 1)]
def record(make, graphs=[]):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        made = make()
    graphs.append(graph)
    return graph, made
def address(tensor):
    return tensor.untyped_storage().data_ptr()
def live():
    return torch.cuda.memory_stats()["requested_bytes.all.current"] - outside
def holds(*tensors):
    return torch._C._cuda_checkPoolLiveAllocations(device, pool, {address(tensor) for tensor in tensors})
def back_to(state, stale=(), owners=()):
    torch._C._cuda_setCheckpointPoolState(
        device, state, [tensor.untyped_storage()._cdata for tensor in stale],
        [tensor.untyped_storage()._cdata for tensor in owners])
def again(pointer, like):  # a tensor on memory that a graph writes, as graph trees make it
    size = like.untyped_storage().nbytes()
    storage = torch._C._construct_storage_from_data_pointer(pointer, torch.device("cuda", 0), size)
    return torch.empty(0, dtype=like.dtype, device="cuda").set_(storage, 0, like.shape, like.stride())
def standard(tensor):
    return torch._C._has_Standard_Deleter(tensor.untyped_storage()._cdata)
outside = torch.cuda.memory_stats()["requested_bytes.all.current"]

# One graph leaves three blocks; they can be put back.
root, outputs = record(lambda: [tensor.clone() for tensor in source])
root_state = torch._C._cuda_getCheckpointState(device, pool)
assert holds(*outputs) and not holds(*outputs[:2]), "live blocks are told"
places = [address(tensor) for tensor in outputs]
note("recorded", live())

# Another on top of two of them.
outputs.pop(1)
left, more = record(lambda: [torch.cat([source[1], source[2]]), source[0].clone()])
left_state = torch._C._cuda_getCheckpointState(device, pool)
note("left", live(), holds(*outputs, *more))

# Back: what was made since is stale, what was freed is live again and gets an owner.
del more
root.replay()
middle = again(places[1], source[1])
assert not standard(middle)
back_to(root_state, owners=[middle])
assert standard(middle) and holds(outputs[0], middle, outputs[1])
note("back", live(), holds(outputs[0], middle, outputs[1]))

# A third graph, beside the second.
right, beside = record(lambda: [source[1].clone(), torch.cat([source[0]] * 3)])
note("right", live(), holds(outputs[0], middle, outputs[1], *beside))
root.replay()
right.replay()
torch.cuda.synchronize()
for tensor, expected in zip([outputs[0], middle, outputs[1]], source):
    assert (tensor.cpu() == expected.cpu()).all(), "what a graph wrote is where it was"
assert (beside[0].cpu() == source[1].cpu()).all()

# Back again with blocks that tensors still hold: torch takes their deleters off, and nothing is freed twice.
back_to(root_state, stale=beside)
assert not any(standard(tensor) for tensor in beside)
del beside
note("again", live())

# By pointer, as graph trees free what died between two runs; the tensor on it must never free it again.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(middle))
torch._C._cuda_cudaCachingAllocator_raw_delete(places[1])
torch._C._free_And_Remove_DeleterFn(outputs[0].untyped_storage()._cdata)
note("freed", live())
for wrong in ((9, 9), (0, 12345)):
    try:
        torch._C._cuda_getCheckpointState(device, wrong)
    except RuntimeError:
        pass
    else:
        raise AssertionError(wrong)
if {poolalloc}:
    from poolalloc import _core
    _core.validate()
    assert _core.plugin_state()["failures"] == 0, _core.plugin_state()["last_failure"]
print(json.dumps(seen))
"""


def test_what_graphs_wrote_is_where_it_was(on_sim: Callable) -> None:
    seen = []
    for poolalloc in (False, True):
        program = PRELUDE.format(poolalloc=poolalloc, compiled="{}") + DIRECT.replace("{poolalloc}", str(poolalloc))
        environment = {"PYTHONPATH": str(ROOT), "POOLALLOC_SIM_KEEP_CONTENTS": "1"}
        outcome = on_sim(program, command=(PYTHON,), environment=environment, imports=(INDUCTOR,))
        assert outcome.report["violations"] == {}
        seen.append(outcome.value)
    assert seen[0] == seen[1]
