"""Torch on devices without virtual memory management: memory comes in whole segments, and everything else works."""

import json
from collections.abc import Callable

import pytest
from fork_server import ForkServer

pytestmark = pytest.mark.torch_interface

TRAINING = """
    import json, torch, poolalloc
    poolalloc.install()
    device = torch.device("cuda")
    model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(6)]).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    side = torch.cuda.Stream()
    for step in range(6):
        batch = torch.randn(64 * (step % 3 + 1), 1024, device=device)
        optimizer.zero_grad(set_to_none=True)
        model(batch).square().mean().backward()
        optimizer.step()
        with torch.cuda.stream(side):
            other = batch * 2
        batch.record_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = model(other)
    graph.replay()
    torch.cuda.synchronize()
    stats = poolalloc.memory_stats()
    reserved = torch.cuda.memory_reserved()
    print(json.dumps({
        "virtual_memory": stats["virtual_memory"],
        "segments": sum(heap["segments"] for heap in stats["heaps"]),
        "reserved": stats["reserved"]["current"],
        "torch_reserved": reserved,
        "summary": poolalloc.memory_summary(),
    }))
"""
MAPPING = ("cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemUnmap")


@pytest.mark.parametrize("how", ["missing", "forced"])
def test_training_streams_and_graphs_work_in_segments(on_sim: Callable, how: str) -> None:
    environment = {"POOLALLOC_CONF": "segments:true"} if how == "forced" else {}
    ran = on_sim(TRAINING, environment=environment, virtual_memory=how == "forced")
    seen = ran.value
    assert seen["virtual_memory"] is False
    assert seen["segments"] > 0
    assert seen["reserved"] == seen["torch_reserved"] > 0
    assert "whole segments" in seen["summary"]
    assert ran.report["violations"] == {}
    assert not [call for call in MAPPING if call in ran.report["calls"]]
    assert ran.report["calls"]["cuMemAlloc"] >= seen["segments"]


def test_out_of_memory_is_torchs_error_there_too(on_sim: Callable) -> None:
    ran = on_sim(
        """
        import json, torch, poolalloc
        poolalloc.install()
        kept = torch.empty(600 << 20, dtype=torch.uint8, device="cuda")
        try:
            torch.empty(600 << 20, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            print(json.dumps(str(error)))
        """,
        memory="1 GiB",
        virtual_memory=False,
    )
    assert "largest block that would have fitted: about 424 MiB" in ran.value


@pytest.mark.parametrize(("fault", "mapped"), [("rdma", True), ("access", False)])
def test_what_is_announced_and_fails_is_done_without(
    clean_environment: dict[str, str], fork_server: ForkServer, fault: str, mapped: bool
) -> None:
    done = fork_server.simulated(
        ["-m", "poolalloc", "doctor", "--json"], vmm_fault=fault, timeout=300, base=clean_environment
    )
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    (device,) = findings["devices"]
    assert device["virtual_memory"] == mapped
    assert "cuMemSetAccess: CUDA_ERROR_UNKNOWN (999)" in device["fault"]
    assert ("GPUDirect RDMA" in device["fault"]) == mapped
    assert findings["swap"]["works"]
    assert findings["swap"]["virtual_memory"] == mapped
    assert done.stderr.count("so memory comes in whole segments") == (0 if mapped else 1)


def test_the_doctor_says_so(clean_environment: dict[str, str], fork_server: ForkServer) -> None:
    done = fork_server.simulated(
        ["-m", "poolalloc", "doctor", "--json"],
        virtual_memory=False,
        timeout=300,
        base=clean_environment,
    )
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    assert [device["virtual_memory"] for device in findings["devices"]] == [False]
    assert findings["swap"]["works"]
    assert findings["swap"]["virtual_memory"] is False
