"""A context costs hundreds of MiB of a device: nothing opens one on a device that the program does not use."""

from collections.abc import Callable

PROGRAM = """
import ctypes, os, tempfile
import poolalloc, torch
poolalloc.install(bridge=True)
from poolalloc import _core
kept = torch.ones(10, device="cuda:0")
cuda = ctypes.CDLL("libcuda.so.1")
def in_use():
    flags, active = ctypes.c_uint(), ctypes.c_int()
    found = []
    for device in range(4):
        assert cuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)) == 0
        if active.value:
            found.append(device)
    return found
assert in_use() == [0]

def record():
    with tempfile.TemporaryDirectory() as folder, poolalloc.record(os.path.join(folder, "run.npz")):
        torch.ones(10, device="cuda:0")
        poolalloc.mark("step")

def history():
    torch.cuda.memory._record_memory_history()
    torch.ones(10, device="cuda:0")
    torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)

def metrics():
    try:
        import prometheus_client
    except ImportError:
        return
    import poolalloc.metrics
    registry = prometheus_client.CollectorRegistry()
    poolalloc.metrics.register(registry)
    assert b"poolalloc_live_bytes" in prometheus_client.generate_latest(registry)

def each(function, *more):
    for device in range(4):
        function(*more, device)

CALLS = {
    "record": record,
    "history": history,
    "metrics": metrics,
    "probe_devices": _core.probe_devices,
    "memory_stats": lambda: each(poolalloc.memory_stats),
    "memory_summary": lambda: each(poolalloc.memory_summary),
    "fragmentation": lambda: each(poolalloc.fragmentation),
    "reset_peak_stats": lambda: each(poolalloc.reset_peak_stats),
    "torch's statistics": lambda: each(torch.cuda.memory_stats),
    "torch's summary": lambda: each(torch.cuda.memory_summary),
    "resetting its peaks": lambda: each(torch.cuda.reset_peak_memory_stats),
    "resetting its sums": lambda: each(torch.cuda.reset_accumulated_memory_stats),
    "torch's accelerator": lambda: hasattr(torch.accelerator, "memory_stats") and each(torch.accelerator.memory_stats),
    "memory fractions": lambda: each(torch.cuda.set_per_process_memory_fraction, 0.5),
    "reading them": lambda: each(torch.cuda.get_per_process_memory_fraction),
    "set_memory_limit": lambda: each(poolalloc.set_memory_limit, "1 GiB"),
    "memory_limit": lambda: each(poolalloc.memory_limit),
    "empty_cache": lambda: (torch.cuda.empty_cache(), poolalloc.empty_cache()),
    "trim": lambda: each(lambda device: poolalloc.trim(device=device, wait=True)),
    "pools": lambda: torch.cuda.MemPool().snapshot(),
    "validate": _core.validate,
}
for name, call in CALLS.items():
    call()
    assert in_use() == [0], (name, in_use())
probed = _core.probe_devices()["devices"]
assert [row["free_bytes"] is not None for row in probed] == [True, False, False, False]
assert all(row["total_bytes"] > 0 and row["name"] for row in probed)
# What was set is there when a device is used.
torch.ones(10, device="cuda:2")
assert in_use() == [0, 2]
assert torch.cuda.get_per_process_memory_fraction(2) == 0.5 and poolalloc.memory_limit(2) == 1 << 30
"""


def test_no_call_opens_a_context_of_a_device_that_is_not_used(on_sim: Callable) -> None:
    on_sim(PROGRAM, devices=4)
