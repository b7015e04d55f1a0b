"""torch.cuda.memory._record_memory_history and _snapshot: as under torch's own allocator, and the figures add up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fork_server import ForkServer

from poolalloc.analysis.replay import replay
from poolalloc.analysis.trace import Op
from poolalloc.analysis.trace.torch_snapshot import import_snapshot

pytestmark = pytest.mark.torch_interface

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("POOLALLOC_TEST_PYTHON", sys.executable)
PROGRAM = Path(__file__).parent / "history_program.py"

PRELUDE = """
import contextlib, json, pickle, poolalloc, random, sys, threading, torch
assert poolalloc.install(bridge=True).backend == "bridge"
memory, MiB = torch.cuda.memory, 2**20
def block(bytes):
    return torch.empty(int(bytes), dtype=torch.uint8, device="cuda")

def figures():
    # Statistics notice frees that have completed, which a snapshot does not: taken before it, until nothing changes.
    stats = torch.cuda.memory_stats()
    while True:
        before, idle, stats = stats, poolalloc.memory_stats()["idle"]["current"], torch.cuda.memory_stats()
        if before["active_bytes.all.current"] == stats["active_bytes.all.current"]:
            return stats, idle

def check_sums(snapshot, known=None):
    # Segments tile into blocks, and add up to what memory_stats says.
    stats, known_idle = known or figures()
    sums, end, idle = dict.fromkeys(("total", "allocated", "active", "requested"), 0), 0, 0
    for segment in sorted(snapshot["segments"], key=lambda segment: segment["address"]):
        at = segment["address"]
        assert at >= end, "segments do not overlap"
        for each in segment["blocks"]:
            assert each["address"] == at
            at += each["size"]
            whole = each["address"] % (2 * MiB) == 0 and each["size"] % (2 * MiB) == 0
            if each["state"] == "inactive" and whole:
                idle += each["size"]
        assert at == segment["address"] + segment["total_size"]
        end = at
        for name in sums:
            sums[name] += segment[f"{name}_size"]
        of = lambda *states: sum(each["size"] for each in segment["blocks"] if each["state"] in states)
        assert segment["allocated_size"] == of("active_allocated")
        assert segment["active_size"] == of("active_allocated", "active_pending_free")
    assert sums["total"] == stats["reserved_bytes.all.current"] == torch.cuda.memory_reserved()
    assert sums["allocated"] == stats["allocated_bytes.all.current"]
    assert sums["active"] == stats["active_bytes.all.current"]
    assert sums["requested"] == stats["requested_bytes.all.current"]
    assert idle == known_idle
    kinds = {"small": "small_pool", "large": "large_pool"}
    for kind, pool in kinds.items():
        total = sum(segment["total_size"] for segment in snapshot["segments"] if segment["segment_type"] == kind)
        assert total == stats[f"reserved_bytes.{pool}.current"], (kind, total)

def pages_of(segments):
    # Each page (2 MiB) of the segments, by address.
    return {page for segment in segments
            for page in range(segment["address"], segment["address"] + segment["total_size"], 2 * MiB)}

def check_told(snapshot, before=frozenset()):
    # The entries about pages lead from the pages there were to those there are.
    pages = set(before)
    for entry in snapshot["device_traces"][0]:
        if entry["action"] in ("segment_map", "segment_unmap"):
            run = set(range(entry["addr"], entry["addr"] + entry["size"], 2 * MiB))
            if entry["action"] == "segment_map":
                assert not run & pages
                pages |= run
            else:
                assert run <= pages
                pages -= run
    assert pages == pages_of(snapshot["segments"])

def shuffle(random, steps, held, streams):
    for _ in range(steps):
        with torch.cuda.stream(random.choice(streams)):
            if len(held) < 40 and random.random() < 0.6:
                held.append(block(random.choice([random.randint(1, 300_000), random.randint(1, 60 * MiB)])))
            elif held:
                index = random.randrange(len(held))
                if random.random() < 0.3:
                    held[index].record_stream(random.choice(streams))
                held.pop(index)
        if random.random() < 0.02:
            torch.cuda.empty_cache()
"""


def dedented(program: str) -> str:
    lines = program.splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[indent:] for line in lines)


@pytest.fixture
def on_bridge(on_sim: Callable) -> Callable:
    """on_bridge(program) runs it after PRELUDE, with the torch under test."""

    def run(program: str, **settings: Any) -> Any:
        environment = {"PYTHONPATH": str(ROOT), **settings.pop("environment", {})}
        return on_sim(PRELUDE + dedented(program), command=(PYTHON,), environment=environment, **settings)

    return run


@pytest.fixture(scope="module")
def results(clean_environment: dict[str, str], fork_server: ForkServer) -> dict[str, dict[str, Any]]:
    """What the program printed under each allocator."""
    found = {}
    for allocator in ("builtin", "poolalloc"):
        done = fork_server.simulated(
            [str(PROGRAM), allocator],
            memory=8 << 30,
            lag=1000,
            timeout=300,
            base={**clean_environment, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        found[allocator] = json.loads((done.stdout or "").splitlines()[-1])
    return found


MODES = ["all", "state", "context None", "context state", "context alloc", "context all", "a ring of 4"]
MODES += ["without some", "metadata"]
SINGLE = ["metadata is", "a snapshot is an entry", "cleared", "lists of segments", "annotations", "the older form"]
SINGLE += ["{'skip_actions': ['nope']}", "{'stacks': 'c'}", "{'enabled': 'x'}", "{'context': 'y'}"]
NEWER = ["marks", "stacks of addresses"]


@pytest.mark.parametrize("name", [*MODES, *(f"{mode}, off again" for mode in MODES), *SINGLE, *NEWER])
def test_the_history_is_torchs(results: dict[str, dict[str, Any]], name: str) -> None:
    if name in NEWER and name not in results["builtin"]:
        pytest.skip("this torch cannot")
    assert results["builtin"][name] == results["poolalloc"][name]


def test_every_mode_is_compared(results: dict[str, dict[str, Any]]) -> None:
    assert results["builtin"].keys() == results["poolalloc"].keys()
    assert set(results["builtin"]) <= {*MODES, *(f"{mode}, off again" for mode in MODES), *SINGLE, *NEWER}
    assert len(results["builtin"]["all"][0]) > 10


@pytest.mark.parametrize("lag", [0, 20])
def test_segments_and_entries_add_up(on_bridge: Callable, lag: int) -> None:
    on_bridge(
        """
        draw, held = random.Random(3), []
        streams = [torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
        shuffle(draw, 200, held, streams)
        known, before = figures(), memory._snapshot()
        check_sums(before, known)
        memory._record_memory_history(stacks="python", context=None)
        for _ in range(15):
            shuffle(draw, 60, held, streams)
            known, snapshot = figures(), memory._snapshot()
            check_sums(snapshot, known)
            check_told(snapshot, pages_of(before["segments"]))
        actions = {entry["action"] for entry in snapshot["device_traces"][0]}
        assert {"segment_map", "segment_unmap", "alloc", "free_requested", "free_completed"} <= actions
        """,
        lag=lag,
        memory="2 GiB",
    )


def test_a_page_with_two_addresses_is_one_page(on_bridge: Callable) -> None:
    on_bridge(
        """
        memory._record_memory_history(stacks="python")
        walls = []
        for size in (10, 20, 30, 40, 50):  # each in a place of its own, on the pages of those before
            hole = block(size * MiB)
            walls.append(block(2 * MiB))
            del hole
            check_sums(memory._snapshot())
        assert poolalloc.memory_stats()["pages_aliased"] > 0, "otherwise this tests nothing"
        check_told(memory._snapshot())
        torch.cuda.empty_cache()
        snapshot = memory._snapshot()
        check_sums(snapshot)
        check_told(snapshot)
        """
    )


def test_pages_that_no_stream_holds_are_a_segment_too(on_bridge: Callable) -> None:
    on_bridge(
        """
        memory._record_memory_history(stacks="python")
        other = torch.cuda.Stream()
        with torch.cuda.stream(other):
            lent = [block(100 * MiB) for _ in range(8)]
        lent.clear()
        kept = block(300 * MiB)  # takes pages from the other stream
        snapshot = memory._snapshot()
        check_sums(snapshot)
        check_told(snapshot)
        spare = [segment for segment in snapshot["segments"] if segment["address"] == 0]
        unmapped = poolalloc.memory_stats()["unmapped"]
        assert sum(segment["total_size"] for segment in spare) == unmapped
        """,
        memory="1 GiB",
    )


def test_private_pools_are_told_apart(on_bridge: Callable) -> None:
    on_bridge(
        """
        memory._record_memory_history(stacks="python")
        pool, graph = torch.cuda.MemPool(), torch.cuda.CUDAGraph()
        with torch.cuda.use_mem_pool(pool):
            inside = block(8 * MiB)
        with torch.cuda.graph(graph):
            captured = inside + 1
        outside = block(4 * MiB)
        snapshot = memory._snapshot()
        check_sums(snapshot)
        check_told(snapshot)
        by_pool = {}
        for segment in snapshot["segments"]:
            key = tuple(segment["segment_pool_id"])
            by_pool[key] = by_pool.get(key, 0) + segment["requested_size"]
        # torch 2.11 keeps a graph's random state, 16 bytes, outside its pool.
        assert by_pool[0, 0] - 4 * MiB in (0, 16), by_pool
        assert by_pool == {pool.id: 8 * MiB, tuple(graph.pool()): 8 * MiB, (0, 0): by_pool[0, 0]}, by_pool
        own = pool.snapshot()
        own = own["segments"] if isinstance(own, dict) else own
        assert [segment["requested_size"] for segment in own] == [8 * MiB]
        entry = snapshot["device_traces"][0][-1]
        if "pool_id" in entry:
            allocs = [entry for entry in snapshot["device_traces"][0] if entry["action"] == "alloc"]
            assert {tuple(entry["pool_id"]) for entry in allocs} == set(by_pool)
        """
    )


def test_out_of_memory_is_an_entry_with_what_the_device_had(on_bridge: Callable) -> None:
    on_bridge(
        """
        kept = block(MiB)
        memory._record_memory_history(stacks="python")
        with contextlib.suppress(torch.OutOfMemoryError):
            block(1 << 40)
        (entry,) = [entry for entry in memory._snapshot()["device_traces"][0] if entry["action"] == "oom"]
        assert entry["size"] == 1 << 40 and entry["device_free"] == torch.cuda.mem_get_info()[0]
        assert [frame["name"] for frame in entry["frames"]] == ["block", "<module>"]
        """,
        fresh=True,  # a fork has the frames of its server beneath
    )


def test_stacks_of_cpp_are_there_if_asked_for(on_bridge: Callable) -> None:
    on_bridge(
        """
        memory._record_memory_history(stacks="all", max_entries=100)
        kept = block(MiB)
        memory._record_memory_history(stacks="all", max_entries=100)
        entry = [entry for entry in memory._snapshot()["device_traces"][0] if entry["action"] == "alloc"][-1]
        names = [frame["name"] for frame in entry["frames"]]
        assert any("empty" in name and "::" in name for name in names) and "block" in names, names
        """,
        # As some versions of torch do by default: addr2line opens each library by name, in a process of its own.
        environment={"TORCH_SYMBOLIZE_MODE": "addr2line"},
    )


def test_several_devices_have_traces_of_their_own(on_bridge: Callable) -> None:
    on_bridge(
        """
        memory._record_memory_history(stacks="python")
        held = []
        for device, size in [("cuda:0", 2), ("cuda:1", 3)]:
            held.append(torch.empty(size * MiB, dtype=torch.uint8, device=device))
        snapshot = memory._snapshot()
        traces = snapshot["device_traces"]
        sizes = [[entry["size"] for entry in trace if entry["action"] == "alloc"] for trace in traces]
        assert sizes == [[2 * MiB], [3 * MiB], []]
        assert {segment["device"]: segment["requested_size"] for segment in snapshot["segments"]} == {
            0: 2 * MiB, 1: 3 * MiB}
        """,
        devices=3,
    )


def test_threads_keep_the_entries_of_an_address_in_order(on_bridge: Callable) -> None:
    on_bridge(
        """
        import queue
        block(1)
        before = pages_of(memory._snapshot()["segments"])
        memory._record_memory_history(stacks="python", context="alloc")
        torch._C._cuda_setMemoryMetadata("main")
        passed = queue.Queue(maxsize=50)
        def make(seed):
            draw = random.Random(seed)
            torch._C._cuda_setMemoryMetadata(f"maker {seed}")
            for _ in range(400):
                passed.put(block(draw.choice([512, 5000, 3 * MiB])))
        def drop():
            for _ in range(800):
                passed.get()
        threads = [threading.Thread(target=make, args=[1]), threading.Thread(target=make, args=[2]),
                   threading.Thread(target=drop)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        snapshot = memory._snapshot()
        check_told(snapshot, before)
        live = {}
        for entry in snapshot["device_traces"][0]:
            if entry["action"] == "alloc":
                assert entry["addr"] not in live
                assert entry["user_metadata"].startswith("maker")
                live[entry["addr"]] = entry["size"]
            elif entry["action"] == "free_requested":
                assert live.pop(entry["addr"]) == entry["size"]
        assert not live
        """
    )


def test_a_snapshot_survives_the_importer(on_bridge: Callable, tmp_path: Path) -> None:
    # The whole history of a run, read back and replayed, asks for as much at its peak as the run did.
    file = tmp_path / "snapshot.pickle"
    stats = on_bridge(
        f"""
        memory._record_memory_history(stacks="python")
        net = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(6)]).cuda()
        optimizer = torch.optim.AdamW(net.parameters())
        draw, held = random.Random(5), []
        streams = [torch.cuda.default_stream(), torch.cuda.Stream()]
        for step in range(6):
            net(torch.empty(32 + 16 * step, 512, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            shuffle(draw, 40, held, streams)
        for size in (1 << 40, 1 << 41):
            with contextlib.suppress(torch.OutOfMemoryError):
                block(size)
        memory._dump_snapshot({str(file)!r})
        print(json.dumps(torch.cuda.memory_stats()))
        """,
        lag=30,
        memory="2 GiB",
    ).value
    trace, report = import_snapshot(file.read_bytes(), file.name)
    assert len(set(report.balance())) == 1
    assert not report.left_out
    assert not any(count for what, count in report.inferred.items() if "lost" in what), report.inferred
    account = report.devices[0]
    assert account["expandable"] == (os.environ.get("POOLALLOC_TEST_SEGMENTS", "") in ("", "0"))
    assert account["reserved_at_start"] == 0
    assert account["reserved_at_end"] == stats["reserved_bytes.all.current"]
    assert account["reserved_peak"] == stats["reserved_bytes.all.peak"]
    assert account["allocated_at_end"] == stats["allocated_bytes.all.current"]
    events = trace.events
    assert np.count_nonzero(events["op"] == Op.ALLOC) == stats["allocation.all.allocated"]
    assert np.count_nonzero(events["op"] == Op.OUT_OF_MEMORY) == stats["num_ooms"] == 2
    sizes = events["requested"].astype(np.int64)
    change = np.where(events["op"] == Op.ALLOC, sizes, 0) - np.where(events["op"] == Op.FREE, sizes, 0)
    assert int(np.cumsum(change).max()) == stats["requested_bytes.all.peak"]
    assert replay(trace).devices[0].peak_requested == stats["requested_bytes.all.peak"]
