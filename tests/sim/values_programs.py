"""Programs for test_values.py: what is computed on the simulated GPU, and what is not. Each prints its name."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

import torch

CUDA = "cuda"


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, device=CUDA)


def unknown(*shape: int) -> torch.Tensor:
    """Integers that nobody knows: random ones."""
    return torch.randint(1, 100, shape, device=CUDA)


def operators_are_carried_out() -> None:
    count = torch.arange(6, device=CUDA)
    assert count.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.ones(3, dtype=torch.long, device=CUDA).cumsum(0).tolist() == [1, 2, 3]
    assert (count.view(2, 3).t().contiguous() * 2 - 1).tolist() == [[-1, 5], [1, 7], [3, 9]]
    assert torch.cat([count[4:], count[:1]]).tolist() == [4, 5, 0]
    assert bool((count == 3).any())
    assert not bool((count == 3).all())
    assert count.max().item() == 5
    assert count.sum().item() == 15
    assert count[ints(5, 0)].tolist() == [5, 0]
    assert torch.isin(count, ints(2, 9)).tolist() == [False, False, True, False, False, False]
    assert torch.where(count > 3, count, -1).tolist() == [-1, -1, -1, -1, 4, 5]
    assert (~(count > 1) | (count == 5)).tolist() == [True, True, False, False, False, True]
    assert count.flip(0).sort().indices.tolist() == [5, 4, 3, 2, 1, 0]
    assert torch.stack([count, count]).argmax(1).tolist() == [5, 5]
    assert torch.full((2,), True, device=CUDA).tolist() == [True, True]
    assert ints(7).to(torch.int32).item() == 7
    assert (torch.tensor(2.5, device=CUDA) * 2).item() == 5.0, "numbers that count and scale things are few"
    # What is written in place, into rows of a larger tensor, and into a tensor that is given.
    table = torch.zeros(3, 4, dtype=torch.long, device=CUDA)
    table[:, 1] = 7
    table[2] += 1
    table[0].masked_fill_(table[0] == 7, 9)
    assert table.tolist() == [[0, 9, 0, 0], [0, 7, 0, 0], [1, 8, 1, 1]]
    result = torch.empty(6, dtype=torch.long, device=CUDA)
    torch.add(count, 1, out=result)
    assert result.tolist() == [1, 2, 3, 4, 5, 6]
    parts = [ints(1), ints(2)]
    torch._foreach_add_(parts, 10)
    assert [part.item() for part in parts] == [11, 12]
    assert torch.broadcast_to(ints(3), (2, 2)).contiguous().tolist() == [[3, 3], [3, 3]]


def sizes_follow_known_values() -> None:
    count = torch.arange(6, device=CUDA)
    assert count.nonzero().flatten().tolist() == [1, 2, 3, 4, 5]
    assert count[count > 3].tolist() == [4, 5]
    assert torch.masked_select(count, count < 2).tolist() == [0, 1]
    assert count.repeat_interleave(count).numel() == 15
    assert unknown(8).gt(3).nonzero().shape == (0, 1)


def unknown_values_are_zero() -> None:
    assert unknown(3).tolist() == [0, 0, 0]
    assert (ints(1, 2, 3) + unknown(3)).tolist() == [0, 0, 0]
    known = ints(4, 5)
    known.add_(unknown(2))
    assert known.tolist() == [0, 0], "what was known is overwritten"
    table = torch.ones(3, 4, dtype=torch.long, device=CUDA)
    table[1] = unknown(4)
    assert table.tolist() == [[1] * 4, [0] * 4, [1] * 4], "the other rows are not"
    assert torch.rand(4, device=CUDA).tolist() == [0.0] * 4
    state = torch.get_rng_state()
    torch.rand(4, device=CUDA)
    assert torch.equal(state, torch.get_rng_state()), "nothing random is drawn on the host"
    # A large tensor is not looked at.
    assert torch.ones(1 << 20, dtype=torch.long, device=CUDA)[5].item() == 0
    # Nor is what lies in memory from before.
    address = 0
    for _ in range(3):
        old = ints(*range(100))
        address = old.data_ptr()
        del old
    fresh = torch.empty(100, dtype=torch.long, device=CUDA)
    assert fresh.data_ptr() == address
    assert fresh.tolist() == [0] * 100


def unknown_numbers_are_finite() -> None:
    numbers = torch.rand(3, 1000, device=CUDA)
    for finite in (
        numbers.isfinite(),
        numbers.eq(numbers),
        ~numbers.isnan(),
        ~numbers.isinf(),
        numbers.abs() < torch.inf,
    ):
        assert finite.all()
    assert not (numbers.isposinf() | numbers.isneginf()).any()
    row = numbers[:, 1].to(torch.bfloat16)
    assert row[~row.isnan()].shape == (3,), "a mask of them has no hole"
    row[1] = torch.nan
    assert row.isnan().tolist() == [False, True, False], "those that are known are looked at"
    row[2] = torch.inf
    assert row.isposinf().tolist() == [False, False, True]
    assert not (numbers == 2.0).any(), "what else they are is not known"
    assert not (numbers != 2.0).any()


def a_kernel_of_nobody_makes_all_unknown() -> None:
    known = ints(4, 5)
    torch.ones(1000, device=CUDA).exp_()
    assert known.tolist() == [4, 5], "an operator writes only its results"

    class Dim3(ctypes.Structure):
        _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]

    launch = ctypes.CDLL(None).cudaLaunchKernel
    one = Dim3(1, 1, 1)
    assert launch(ctypes.c_void_p(1), one, one, None, ctypes.c_size_t(0), None) == 0
    assert known.tolist() == [0, 0]


def graphs_do_not_run_while_they_are_captured() -> None:
    counter = ints(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counter += 1
    assert counter.item() == 1
    graph.replay()
    assert counter.item() == 0, "what a graph computes is not known"


def transforms_and_backward_passes_run() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4, device=CUDA))
    with torch.autocast("cuda"):
        loss = (weight @ torch.ones(4, 4, device=CUDA)).sum()
    loss.backward()
    assert weight.grad is not None
    assert torch.func.vmap(lambda row: row + 1)(torch.arange(4, device=CUDA).view(2, 2)).tolist() == [[1, 2], [3, 4]]
    assert torch.func.functional_call(torch.nn.Linear(2, 2).to(CUDA), {}, (torch.ones(1, 2, device=CUDA),)).shape == (
        1,
        2,
    )
    with torch.inference_mode():
        assert (ints(1) + 1).item() == 2
    with torch.device(CUDA):
        assert torch.tensor([3]).add(1).tolist() == [4]


def generation_ends() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=64, pad_token_id=0, eos_token_id=63,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(CUDA)
    prompt = torch.ones(2, 4, dtype=torch.long, device=CUDA)
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 5}):
        assert model.generate(prompt, max_new_tokens=3, **options).shape == (2, 7)
    mask = torch.ones_like(prompt)
    mask[0, 0] = 0
    assert model.generate(prompt, attention_mask=mask, max_new_tokens=3).shape == (2, 7)


def rank_of_two(rank: int, port: int) -> None:
    """One of two processes, on a device each, that train one model with NCCL between them."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gathered = [torch.zeros(2, dtype=torch.long, device=CUDA) for _ in range(2)]
    dist.all_gather(gathered, ints(3, 4))
    assert [part.tolist() for part in gathered] == [[3, 4], [3, 4]]
    received = torch.empty(4, dtype=torch.long, device=CUDA)
    dist.all_to_all_single(received, ints(1, 2, 3, 4))
    assert received.tolist() == ([1, 2, 1, 2] if rank == 0 else [3, 4, 3, 4])
    objects: list[object] = [None, None]
    dist.all_gather_object(objects, {"loss": 1})
    assert objects == [{"loss": 1}] * 2
    layers = (torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 3))
    model = DistributedDataParallel(torch.nn.Sequential(*layers).to(CUDA), device_ids=[rank])
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.randn(8, 64, device=CUDA)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    dist.destroy_process_group()


def ranks_train_over_nccl() -> None:
    """Starts the two, each with its rank as an argument."""
    import socket
    import subprocess

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys, values_programs; values_programs.rank_of_two(int(sys.argv[1]), int(sys.argv[2]))"
    folder = os.path.dirname(os.path.abspath(__file__))
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(rank), str(port)], cwd=folder) for rank in range(2)]
    try:
        assert [rank.wait(200) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()


def early_uses_are_named() -> None:
    """With events that lag, and no wait between the streams."""
    shared = torch.zeros(1 << 20, device=CUDA)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        shared.mul_(2)
    shared.add_(1)


def a_loop_without_end_is_named() -> None:
    """Ended by the test."""
    while not unknown(4).gt(0).all():
        pass


def a_slow_loop_without_end_is_named() -> None:
    work = torch.ones(4096, device=CUDA)
    while not unknown(4).gt(0).all():
        for _ in range(100):
            work.mul_(1.0)


def main(names: list[str]) -> None:
    assert "POOLALLOC_SIM_VALUES" in os.environ
    for name in names:
        program: Callable[[], None] = globals()[name]
        program()
        print("done", name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
