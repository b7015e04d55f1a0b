"""Exact bins under real torch: what is kept serves the next tensors, is inactive in torch's figures, and can be had."""

from collections.abc import Callable

import pytest

PROGRAM = """
import json, torch, poolalloc
from poolalloc import ExactBin, _core
MiB = 2**20
poolalloc.install(poolalloc.Config(exact_bins=[ExactBin("6 MiB", preallocate=4, keep=8), ExactBin("20MiB", keep=2)]),
                  bridge={bridge})


def block(size):
    return torch.empty(size * MiB, dtype=torch.uint8, device="cuda")


def now(name):
    return poolalloc.memory_stats()[name]["current"]


def driver_calls():
    return sum(poolalloc.memory_stats()["driver_calls"].values())


first = block(6)
place = first.data_ptr()
assert now("kept") == 18 * MiB
del first
assert now("kept") == 24 * MiB and now("live") == 0
before = driver_calls()
for _ in range(10):
    held = [block(6) for _ in range(4)]
    assert held[0].data_ptr() == place
    del held
assert driver_calls() == before
stats = poolalloc.memory_stats()
assert stats["kept_hits"] == 41 and stats["kept_misses"] == 0
"""


@pytest.mark.parametrize("bridge", [True, False], ids=["bridge", "plugin"])
def test_what_is_kept_serves_the_next_tensors_and_is_given_up_when_it_is_needed(on_sim: Callable, bridge: bool) -> None:
    on_sim(
        PROGRAM.format(bridge=bridge)
        + """
side = torch.cuda.Stream()
shared = block(20)
shared.record_stream(side)
with torch.cuda.stream(side):
    other = shared * 2
del shared, other
torch.cuda.synchronize()
_core.validate()
large = block(1010)
stats = poolalloc.memory_stats()
assert stats["after_releasing"] + stats["after_waiting"] == 1 and stats["out_of_memory"] == 0, stats
assert now("kept") < 24 * MiB
try:
    block(300)
except RuntimeError as error:
    assert "out of memory" in str(error)
else:
    raise AssertionError
assert now("kept") == 0
del large
poolalloc.empty_cache()
assert now("reserved") == 0
_core.validate()
""",
        memory="1 GiB",
    )


def test_torchs_figures_and_snapshot_agree_with_ours(on_sim: Callable) -> None:
    on_sim(
        PROGRAM.format(bridge=True)
        + """
live = [block(6), block(20), block(3), torch.empty(1000, device="cuda")]
gone = [block(20), block(20)]
del gone


def check():
    stats, own = torch.cuda.memory_stats(), poolalloc.memory_stats()
    current = {name: stats[f"{name}_bytes.all.current"] for name in
               ("allocated", "active", "reserved", "inactive_split", "requested")}
    ours = {name: own[name]["current"] for name in ("live", "pending", "kept", "resident", "reserved", "requested")}
    assert current["allocated"] == current["active"] == ours["live"]
    assert current["reserved"] == ours["reserved"] and current["requested"] == ours["requested"]
    assert current["inactive_split"] == ours["resident"] - ours["live"] - ours["kept"]
    for part in ("allocated", "active", "reserved", "inactive_split", "requested"):
        for kind in ("all", "small_pool", "large_pool"):
            figure = {key: stats[f"{part}_bytes.{kind}.{key}"] for key in ("current", "peak", "allocated", "freed")}
            assert 0 <= figure["current"] <= figure["peak"], (part, kind, figure)
            assert figure["allocated"] - figure["freed"] == figure["current"]
    segments = torch.cuda.memory._snapshot()["segments"]
    assert sum(segment["total_size"] for segment in segments) == ours["reserved"]
    assert sum(segment["allocated_size"] for segment in segments) == ours["live"]
    active = inactive = 0
    for segment in segments:
        assert sum(piece["size"] for piece in segment["blocks"]) == segment["total_size"]
        for piece in segment["blocks"]:
            if piece["state"].startswith("active"):
                active += piece["size"]
            else:
                inactive += piece["size"]
    assert (active, inactive) == (ours["live"], ours["reserved"] - ours["live"])
    assert torch.cuda.memory_reserved() == ours["reserved"]
    share = poolalloc.fragmentation().total
    assert share.kept == ours["kept"] and share.reserved == ours["reserved"]
    _core.validate()
    return ours


ours = check()
assert ours["kept"] == 3 * 6 * MiB + 40 * MiB
graph = torch.cuda.CUDAGraph()
static = torch.zeros(6 * MiB, dtype=torch.uint8, device="cuda")
with torch.cuda.graph(graph):
    result = static + 1
graph.replay()
assert check()["kept"] <= ours["kept"]
del live, static, result
graph.reset()
check()
torch.cuda.synchronize()
torch.cuda.empty_cache()
assert check()["kept"] == 0
assert "kept" in poolalloc.memory_summary()
""",
        memory="1 GiB",
    )


def test_a_training_loop_takes_them_from_the_environment(on_sim: Callable) -> None:
    ran = on_sim(
        """
import json, torch, poolalloc
poolalloc.install()
from poolalloc import _core
device = torch.device("cuda")
model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(4)]).to(device)
optimizer = torch.optim.AdamW(model.parameters())
made = []
for step in range(12):
    before = sum(poolalloc.memory_stats()["driver_calls"].values())
    loss = model(torch.randn(512, 1024, device=device)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    made.append(sum(poolalloc.memory_stats()["driver_calls"].values()) - before)
_core.validate()
stats = poolalloc.memory_stats()
print(json.dumps({"calls": made, "hits": stats["kept_hits"], "kept": stats["kept"]["current"]}))
""",
        environment={"POOLALLOC_CONF": "exact_bins:4MiB/2/16+2MiB/0/16"},
    )
    assert ran.value["calls"][-4:] == [0] * 4, "fixed shapes"
    assert ran.value["hits"] > 50
    assert ran.value["kept"] > 0
    assert ran.report["violations"] == {}
