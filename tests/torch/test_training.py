"""Real training under poolalloc: every tensor's memory is its own, and the books balance afterwards."""

from collections.abc import Callable

TRAIN = """
import json
import poolalloc, torch
from torch import nn
poolalloc.install()
from poolalloc import _core

{model}

model = Net().cuda()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
peaks = []
for step in range(6):
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(batch(step)).float().mean()
    loss.backward()
    optimizer.step()
    _core.validate()
    peaks.append(poolalloc.memory_stats()["reserved"]["peak"])
stats = poolalloc.memory_stats()
parameters = sum(p.numel() * p.element_size() for p in model.parameters())
assert stats["requested"]["current"] >= 4 * parameters - 4096, "parameters, gradients and two moments"
for tensor in [*model.parameters(), *(p.grad for p in model.parameters())]:
    base, size = _core.base_allocation(tensor.data_ptr())
    assert base == tensor.data_ptr() and size >= tensor.numel() * tensor.element_size()
where = poolalloc.fragmentation()
assert where.total.reserved == stats["reserved"]["current"]
assert stats["requested"]["current"] <= stats["live"]["current"] <= stats["resident"]["current"]
assert len(poolalloc.memory_summary().splitlines()) > 20
state = _core.plugin_state()
assert state["failures"] == 0, state
print(json.dumps(dict(stats, peaks=peaks, parameters=parameters)))
"""

MLP = """
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))

def batch(step):
    return torch.randn(64 + 32 * step, 512, device="cuda")
"""

TRANSFORMER = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(1000, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(256, 1000)

    def forward(self, tokens):
        return self.head(self.layers(self.embedding(tokens)))

def batch(step):
    return torch.zeros(4, 64 + 64 * (step % 3), dtype=torch.long, device="cuda")
"""


def check(outcome) -> None:
    stats = outcome.value
    assert outcome.err == ""
    assert stats["out_of_memory"] == 0
    assert stats["driver_work"]["create_pages"] == stats["pages_created"]
    assert stats["driver_calls"]["create"] == stats["driver_work"]["create"]
    # The device's own count: nothing else in the process took memory behind poolalloc's back.
    (device,) = outcome.report["devices"]
    assert device["peak_used_bytes"] == stats["reserved"]["peak"]
    assert outcome.report["violations"] == {}
    assert "cudaMalloc" not in outcome.report["calls"]


def test_an_mlp_trains(on_sim: Callable) -> None:
    check(on_sim(TRAIN.format(model=MLP)))


def test_a_transformer_trains(on_sim: Callable) -> None:
    check(on_sim(TRAIN.format(model=TRANSFORMER)))


def test_a_transformer_trains_while_the_device_lags_behind(on_sim: Callable) -> None:
    check(on_sim(TRAIN.format(model=TRANSFORMER), lag=50))


def test_the_process_ends_cleanly_with_live_tensors(on_sim: Callable) -> None:
    outcome = on_sim(
        """
        import atexit, threading
        import poolalloc, torch
        poolalloc.install()
        kept = [torch.empty(size, device="cuda") for size in (1, 1000, 10**7)]

        class Cycle:
            pass
        cycle = Cycle()
        cycle.own, cycle.tensor = cycle, torch.empty(1000, device="cuda")
        local = threading.local()
        local.tensor = torch.empty(1000, device="cuda")
        torch.kept = kept  # outlives the globals of this module
        atexit.register(lambda: torch.empty(10, device="cuda"))
        """
    )
    assert outcome.err == ""
    assert outcome.report["violations"] == {}


def test_two_devices(on_sim: Callable) -> None:
    outcome = on_sim(
        """
        import json
        import poolalloc, torch
        poolalloc.install()
        from poolalloc import _core
        a = torch.empty(10 * 2**20, dtype=torch.uint8, device="cuda:0")
        with torch.cuda.device(1):
            b = torch.empty(30 * 2**20, dtype=torch.uint8, device="cuda")
            assert poolalloc.memory_stats()["device"] == 1
        c = a.to("cuda:1")
        assert _core.devices() == [0, 1]
        stats = [poolalloc.memory_stats(device) for device in (torch.device("cuda:0"), "cuda:1")]
        assert [s["requested"]["current"] for s in stats] == [10 * 2**20, 40 * 2**20]
        poolalloc.reset_peak_stats(1)
        del b, c
        _core.validate()
        freed = poolalloc.empty_cache()
        assert poolalloc.memory_stats(1)["reserved"]["current"] == 0
        assert poolalloc.memory_stats(0)["reserved"]["current"] >= 10 * 2**20
        for wrong in (2, "cuda:2", -1):
            try:
                poolalloc.memory_stats(wrong)
            except poolalloc.UsageError as error:
                assert "device" in str(error)
            else:
                raise AssertionError(wrong)
        print(json.dumps(freed))
        """,
        devices=2,
    )
    assert outcome.value >= 40 * 2**20
    assert outcome.report["devices"][1]["used_bytes"] == 0
    assert [device["peak_used_bytes"] >= 10 * 2**20 for device in outcome.report["devices"]] == [True, True]


def test_two_threads_on_two_streams(on_sim: Callable) -> None:
    on_sim(
        """
        import threading
        import poolalloc, torch
        poolalloc.install()
        from poolalloc import _core
        torch.cuda.init()
        problems = []

        def work(seed):
            try:
                stream = torch.cuda.Stream()
                with torch.cuda.stream(stream):
                    kept = []
                    for step in range(300):
                        size = (seed * 7919 + step * 104729) % (3 * 2**20) + 1
                        tensor = torch.empty(size, dtype=torch.uint8, device="cuda")
                        base, rounded = _core.base_allocation(tensor.data_ptr())
                        assert base == tensor.data_ptr() and rounded >= size
                        kept.append(tensor)
                        if step % 3 == 0:
                            kept.pop(step % len(kept))
                        if step % 50 == 49:
                            kept[0].record_stream(torch.cuda.current_stream())
                            kept = kept[1:]
            except Exception as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems, problems
        _core.validate()
        stats = poolalloc.memory_stats()
        assert len(stats["heaps"]) >= 2
        assert stats["live_blocks"] == 0, stats["live_blocks"]
        poolalloc.empty_cache()
        assert poolalloc.memory_stats()["reserved"]["current"] == 0
        """
    )
