"""CUDA tensors between processes (torch.multiprocessing), on poolalloc and, to compare, on torch's own allocator.

On the simulated GPU exported memory is really shared: what one process copies there another reads.

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
import os
import torch
import torch.multiprocessing as mp
POOLALLOC = os.environ["ALLOCATOR"] == "poolalloc"
if POOLALLOC:
    import poolalloc
    assert poolalloc.install(bridge=True).backend == "bridge"
MiB = 2**20
def numbers(count, start=0):
    return torch.arange(start, start + count, dtype=torch.int32).cuda()
def held():
    torch.cuda.init()
    return torch.cuda.memory_stats()["requested_bytes.all.current"]
def run(target, *arguments):
    process = mp.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0, process.exitcode
def pair(target, *arguments):
    context = mp.get_context("spawn")
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=target, args=(there, back, *arguments), daemon=True)
    process.start()
    return process, there, back
def end(process):
    process.join()
    assert process.exitcode == 0, process.exitcode
    if POOLALLOC:
        from poolalloc import _core
        _core.validate()
        assert _core.plugin_state()["failures"] == 0, _core.plugin_state()["last_failure"]
"""

VIEWS = """
def consumer(there, back):
    whole, rows, small, last = there.get()
    before = held()
    assert whole.cpu().tolist() == list(range(70000)), whole
    assert rows.cpu().tolist() == [[100, 101], [102, 103]] and small.cpu().tolist() == [7]
    assert last.cpu().tolist() == list(range(5, 10))
    assert rows.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr(), "views share their storage"
    whole[:3].copy_(torch.tensor([9, 8, 7], dtype=torch.int32))  # both processes see the same bytes
    torch.cuda.synchronize()
    assert held() == before, "memory of another process is not ours"
    back.put("written")
    assert there.get() == "end"
    del whole, rows, small, last

if __name__ == "__main__":
    whole, small, last = numbers(70000), torch.tensor([7], dtype=torch.int32).cuda(), numbers(5, 5)
    process, there, back = pair(consumer)
    there.put((whole, whole[100:104].view(2, 2), small, last))
    assert back.get(timeout=100) == "written"
    assert whole[:4].cpu().tolist() == [9, 8, 7, 3] and small.cpu().tolist() == [7]
    there.put("end")
    end(process)
"""

MANY = """
# More pages than a process may have files open, and many tensors of one page.
def consumer(there, back):
    import resource
    large, small = there.get(), there.get()
    files = len(os.listdir("/proc/self/fd"))
    assert large.numel() == 700 * MiB and large[-3:].cpu().tolist() == [1, 2, 3]
    assert [tensor.cpu().tolist() for tensor in small] == [[number] * 50 for number in range(64)]
    assert files < 200, files
    there.get()
    assert there.get() is None

if __name__ == "__main__":
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    large = torch.empty(700 * MiB, dtype=torch.uint8, device="cuda")
    large[-3:].copy_(torch.tensor([1, 2, 3], dtype=torch.uint8))
    process, there, back = pair(consumer)
    there.put(large)
    small = [torch.full((50,), number).cuda() for number in range(64)]
    there.put(small)
    there.put(small[3:5])  # the same blocks once more
    there.put(None)
    end(process)
    assert len(os.listdir("/proc/self/fd")) < 200
"""

OUTLIVES = """
# What the producer drops lives until the consumer has dropped it too; then its memory serves others.
def consumer(there, back):
    tensor = there.get()
    back.put("opened")
    assert there.get() == "dropped"
    assert tensor.cpu().tolist() == list(range(3000))
    del tensor
    import gc
    gc.collect()
    torch.cuda.ipc_collect()
    back.put("closed")
    assert there.get() == "end"

if __name__ == "__main__":
    outside = held()
    tensor = numbers(3000)
    process, there, back = pair(consumer)
    there.put(tensor)
    del tensor
    assert back.get(timeout=100) == "opened"
    assert held() - outside == 12000, "kept for the consumer"
    for _ in range(50):  # nothing of it is reused
        torch.full((3000,), 5, dtype=torch.int32).cuda()
    torch.cuda.empty_cache()
    there.put("dropped")
    assert back.get(timeout=100) == "closed"
    torch.cuda.ipc_collect()
    assert held() == outside
    there.put("end")
    end(process)
"""

EVENTS = """
def consumer(there, back, handle):
    event = torch.cuda.Event.from_ipc_handle(torch.device("cuda", 0), handle)
    tensor = there.get()
    event.wait()
    event.synchronize()
    assert tensor.cpu().tolist() == list(range(100))
    back.put("seen")
    there.get()

if __name__ == "__main__":
    event = torch.cuda.Event(interprocess=True)
    tensor = numbers(100)
    event.record()
    process, there, back = pair(consumer, event.ipc_handle())
    there.put(tensor)
    assert back.get(timeout=100) == "seen"
    there.put("end")
    end(process)
"""

TRAINING = """
# The parameters of a model in another process, as in Hogwild training.
def consumer(model, queue):
    assert [value.item() for value in model.bias.detach().cpu()] == [1.0, 2.0]
    with torch.no_grad():
        model.bias.copy_(torch.tensor([3.0, 4.0]))
    torch.cuda.synchronize()
    queue.put("done")

if __name__ == "__main__":
    model = torch.nn.Linear(3, 2).cuda()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1.0, 2.0]))
    model.share_memory()
    queue = mp.get_context("spawn").Queue()
    run(consumer, model, queue)
    assert queue.get() == "done"
    assert model.bias.detach().cpu().tolist() == [3.0, 4.0]
"""

PROGRAMS = {
    "views": VIEWS,
    "many": MANY,
    "outlives": OUTLIVES,
    "events": EVENTS,
    "training": TRAINING,
}


@pytest.fixture
def on_ipc(on_sim: Callable) -> Callable:
    def run(program: str, allocator: str = "poolalloc", **settings: object) -> object:
        environment = {"PYTHONPATH": str(ROOT), "ALLOCATOR": allocator, **settings.pop("environment", {})}
        return on_sim(PRELUDE + program, command=(PYTHON,), environment=environment, **settings)

    return run


@pytest.mark.parametrize("program", PROGRAMS)
def test_tensors_reach_other_processes(on_ipc: Callable, program: str) -> None:
    assert on_ipc(PROGRAMS[program]).report["violations"] == {}


@pytest.mark.parametrize("program", ["views", "outlives", "training"])
def test_the_programs_hold_on_torchs_own_allocator(on_ipc: Callable, program: str) -> None:
    on_ipc(PROGRAMS[program], "torch")


def test_what_cannot_be_opened_says_why(on_ipc: Callable) -> None:
    on_ipc(
        """
def failing(call, *texts):
    try:
        call()
    except RuntimeError as error:
        assert all(text in str(error) for text in texts), error
    else:
        raise AssertionError("opened")

def opener(handle):
    return lambda: torch.UntypedStorage._new_shared_cuda(0, handle, 4, 0, b"none", 0, b"", False)

def producer(queue):
    queue.put(numbers(1).untyped_storage()._share_cuda_()[1])

def consumer(freed, alive, foreign):
    failing(opener(foreign), "without poolalloc")
    failing(opener(alive[:30] + bytes(4) + alive[34:]), "another version")  # the secret
    failing(opener(freed), "was freed")
    storage = opener(alive)()
    assert torch.empty(0, dtype=torch.int32, device="cuda").set_(storage).cpu().tolist() == [41]

if __name__ == "__main__":
    torch.cuda.init()
    from poolalloc import _core
    keep, gone = numbers(1, 41), numbers(1, 42)
    alive = keep.untyped_storage()._share_cuda_()[1]
    pointer = torch.cuda.caching_allocator_alloc(1000)
    view = torch._C._construct_storage_from_data_pointer(pointer, torch.device("cuda", 0), 1000)
    freed = view._share_cuda_()[1]
    torch.cuda.caching_allocator_delete(pointer)
    run(consumer, freed, alive, b"c" + bytes(64))
    queue = mp.get_context("spawn").Queue()
    run(producer, queue)
    failing(opener(queue.get()), "has ended", "must live")
    _core.validate()
    os._exit(0)  # the storage of freed memory must not be freed again
"""
    )


def test_shared_memory_stays_where_it_is(on_ipc: Callable) -> None:
    """Whatever happens to the rest of the heap, a shared block keeps its pages and its bytes."""
    on_ipc(
        """
def consumer(there, back):
    tensors = there.get()
    for _ in range(3):
        assert there.get() == "look"
        for number, tensor in enumerate(tensors):
            assert (tensor[:100].cpu() == number).all(), number  # the simulated GPU copies 1 MiB at most
        back.put("same")
    there.get()

if __name__ == "__main__":
    sizes = [100, 300_000, MiB, 5 * MiB + 1, 3000]
    tensors = [torch.full((size,), number, dtype=torch.uint8).cuda() for number, size in enumerate(sizes)]
    process, there, back = pair(consumer)
    there.put(tensors)
    for round in range(3):
        kept = [torch.ones(1 + 700_000 * (i * 7 % 23), dtype=torch.uint8).cuda() for i in range(60)]
        del kept[::2]
        torch.cuda.empty_cache()
        try:
            huge = [torch.empty(512 * MiB, dtype=torch.uint8, device="cuda") for _ in range(100)]
        except torch.OutOfMemoryError:
            pass
        del kept
        torch.cuda.empty_cache()
        there.put("look")
        assert back.get(timeout=100) == "same"
    there.put("end")
    end(process)
"""
    )


def test_a_block_opened_twice_is_mapped_once(on_ipc: Callable) -> None:
    on_ipc(
        """
def consumer(there, back):
    calls = lambda: poolalloc.memory_stats()["driver_calls"].get("import_handle", 0)
    torch.cuda.init()
    one = there.get()
    opened = calls()
    two = there.get()
    assert calls() == opened and two.data_ptr() == one.data_ptr() + 400, (calls(), opened)
    assert there.get() == "end"

if __name__ == "__main__":
    tensor = numbers(1000)
    process, there, back = pair(consumer)
    there.put(tensor)
    there.put(tensor[100:])
    there.put("end")
    end(process)
"""
    )
