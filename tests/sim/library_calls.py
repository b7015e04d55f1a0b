"""A program for test_stubs.py: drives torch into every library that libsimgpu.so stands in for, one function each.

Run under `poolalloc sim` with the names of functions; prints `ok NAME` after each that got through.
Values are not looked at, for nothing computes them; shapes, types and the absence of errors are.
"""

from __future__ import annotations

import sys
import traceback

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

CUDA = torch.device("cuda")


def randn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, device=CUDA, dtype=dtype, requires_grad=grad)


def train(model: nn.Module, *inputs: torch.Tensor, steps: int = 2) -> None:
    model.to(CUDA)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(*inputs)
        output = output[0] if isinstance(output, tuple) else output
        output.float().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- cuBLAS and cuBLASLt ---
def mlp() -> None:
    train(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 8)), randn(32, 64))


def mixed_precision() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).to(CUDA)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype=dtype):
            output = model(randn(32, 64))
        assert output.dtype == dtype
        scaler.scale(output.float().sum()).backward()
        scaler.step(optimizer)
        scaler.update()


def products() -> None:
    a, b = randn(4, 16, 32), randn(4, 32, 8)
    assert torch.bmm(a, b).shape == (4, 16, 8)
    assert torch.baddbmm(randn(4, 16, 8), a, b).shape == (4, 16, 8)
    assert torch.einsum("bij,bjk->ik", a, b).shape == (16, 8)
    assert (randn(8, 8, dtype=torch.complex64) @ randn(8, 8, dtype=torch.complex64)).shape == (8, 8)
    assert (randn(8, 8, dtype=torch.float64) @ randn(8, dtype=torch.float64)).shape == (8,)
    assert torch.dot(randn(9), randn(9)).shape == ()
    assert torch.addmm(randn(8), randn(4, 16), randn(16, 8)).shape == (4, 8)
    integers = torch.zeros(32, 32, device=CUDA, dtype=torch.int8)
    assert torch._int_mm(integers, integers).dtype == torch.int32


def eight_bit_floats() -> None:
    a = torch.zeros(32, 64, device=CUDA, dtype=torch.float8_e4m3fn)
    b = torch.zeros(16, 64, device=CUDA, dtype=torch.float8_e4m3fn).t()
    one = torch.ones((), device=CUDA)
    assert torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16).shape == (32, 16)


def work_of_a_library_is_a_launch() -> None:
    """Where the host wrote, a library's result is read as zeros afterwards, as any kernel's."""
    dense, vector = torch.ones(8, 8), torch.ones(8)
    signal = torch.ones(8, dtype=torch.complex64)
    operations = {
        "cuBLAS": lambda: torch.mm(dense.to(CUDA), dense.to(CUDA), out=dense.to(CUDA)),
        "cuBLASLt": lambda: torch.addmm(vector.to(CUDA), dense.to(CUDA), dense.to(CUDA), out=dense.to(CUDA)),
        "cuFFT": lambda: torch.fft.fft(signal.to(CUDA), out=signal.to(CUDA)),
        "cuDNN": lambda: F.conv1d(dense.view(1, 8, 8).to(CUDA), dense.view(8, 8, 1).to(CUDA)),
        "cuSOLVER": lambda: torch.linalg.cholesky(dense.to(CUDA), out=dense.to(CUDA)),
    }
    for library, operation in operations.items():
        for _ in range(3):  # so that memory is used again
            assert operation().cpu().abs().max() == 0, library


# --- cuDNN ---
class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, groups=2),
            nn.BatchNorm2d(width),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.relu(images + self.inner(images))


def resnet(channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 7, stride=2, padding=3),
        nn.BatchNorm2d(16),
        nn.MaxPool2d(3, stride=2, padding=1),
        Residual(16),
        nn.Conv2d(16, 32, 1, stride=2),
        Residual(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def convolutions() -> None:
    train(resnet(), randn(4, 3, 64, 64))
    assert resnet().to(CUDA).eval()(randn(2, 3, 32, 32)).shape == (2, 10)


def convolutions_chosen_by_benchmark() -> None:
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        train(resnet(), randn(4, 3, 48, 48))
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        train(resnet(), randn(4, 3, 48, 48))


def convolutions_in_half_precision_with_channels_last() -> None:
    images = randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype=dtype):
            train(resnet().to(memory_format=torch.channels_last), images)


def other_convolutions() -> None:
    train(nn.Conv1d(8, 4, 5), randn(2, 8, 32))
    train(nn.Conv3d(3, 4, 3, dilation=2), randn(2, 3, 16, 16, 16))
    train(nn.ConvTranspose2d(8, 4, 4, stride=2), randn(2, 8, 16, 16))
    train(nn.Conv2d(8, 8, 3, groups=8), randn(2, 8, 16, 16))


def convolutions_without_cudnn() -> None:
    with torch.backends.cudnn.flags(enabled=False):
        train(resnet(), randn(4, 3, 48, 48))


def recurrent_networks() -> None:
    for bidirectional in (False, True):
        train(nn.LSTM(12, 16, 2, bidirectional=bidirectional, batch_first=True, dropout=0.1), randn(4, 7, 12))
    train(nn.LSTM(12, 16, 2, proj_size=5), randn(7, 4, 12))
    train(nn.GRU(12, 16, bias=False), randn(7, 4, 12))
    train(nn.RNN(12, 16, 3), randn(7, 4, 12))
    with torch.no_grad():
        assert nn.LSTM(12, 16).to(CUDA).half()(randn(7, 4, 12).half())[0].shape == (7, 4, 16)


def cudnn_odds_and_ends() -> None:
    assert torch.backends.cudnn.is_available()
    assert torch.backends.cudnn.version() >= 90000
    assert F.grid_sample(randn(2, 3, 8, 8), randn(2, 8, 8, 2), align_corners=True).shape == (2, 3, 8, 8)
    targets = torch.ones(2, 2, device=CUDA, dtype=torch.int64)
    lengths = torch.full((2,), 8, device=CUDA), torch.full((2,), 2, device=CUDA)
    loss = F.ctc_loss(randn(8, 2, 5).log_softmax(2), targets, *lengths)
    assert loss.shape == ()


# --- attention ---
def attention() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q, k, v = (randn(2, 4, 128, 64, dtype=dtype, grad=True) for _ in range(3))
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
        F.scaled_dot_product_attention(q, k, v, attn_mask=randn(128, 128, dtype=dtype)).sum().backward()
    backends = torch.nn.attention.SDPBackend
    for backend in (backends.FLASH_ATTENTION, backends.EFFICIENT_ATTENTION, backends.MATH):
        with torch.nn.attention.sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, k, v).sum().backward()


def transformer() -> None:
    train(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), randn(2, 16, 64))
    train(nn.MultiheadAttention(64, 4), randn(16, 2, 64), randn(16, 2, 64), randn(16, 2, 64))


# --- cuSOLVER ---
def linear_algebra() -> None:
    for dtype in (torch.float32, torch.float64, torch.complex64):
        for batch in ((), (3,)):
            a, b = randn(*batch, 8, 8, dtype=dtype), randn(*batch, 8, 2, dtype=dtype)
            assert torch.linalg.solve(a, b).shape == b.shape
            assert torch.linalg.inv(a).shape == a.shape
            assert torch.linalg.det(a).shape == batch
            assert torch.linalg.cholesky(a).shape == a.shape
            assert torch.cholesky_solve(b, a).shape == b.shape
            assert torch.linalg.qr(a).R.shape == a.shape
            assert torch.linalg.eigh(a).eigenvalues.shape == (*batch, 8)
            assert torch.linalg.svdvals(a).shape == (*batch, 8)
            for driver in ("gesvd", "gesvdj", "gesvda"):
                assert torch.linalg.svd(randn(*batch, 9, 8, dtype=dtype), driver=driver).S.shape == (*batch, 8)
            assert torch.linalg.lstsq(a, b).solution.shape == b.shape
            assert torch.linalg.solve_triangular(a, b, upper=True).shape == b.shape
            assert torch.linalg.ldl_factor(a).LD.shape == a.shape
            assert torch.ormqr(a, randn(*batch, 8, dtype=dtype), b).shape == b.shape
    a = randn(8, 8, grad=True)
    (torch.linalg.solve(a, randn(8, 2)).sum() + torch.linalg.svdvals(a).sum()).backward()


# --- cuFFT ---
def fourier() -> None:
    signal = randn(4, 128, grad=True)
    torch.fft.irfft(torch.fft.rfft(signal)).sum().backward()
    assert torch.fft.fft2(randn(3, 32, 48)).shape == (3, 32, 48)
    assert torch.fft.fftn(randn(8, 8, 8, 8, dtype=torch.complex64)).shape == (8, 8, 8, 8)
    assert torch.stft(randn(2, 400), 64, window=torch.ones(64, device=CUDA), return_complex=True).shape[1] == 33


# --- cuSPARSE ---
def sparse() -> None:
    rows = torch.arange(9, device=CUDA, dtype=torch.int32)
    columns = torch.arange(8, device=CUDA, dtype=torch.int32)
    for dtype in (torch.float32, torch.float64):
        with_rows = torch.sparse_csr_tensor(rows, columns, randn(8, dtype=dtype), (8, 8), check_invariants=False)
        assert (with_rows @ randn(8, 5, dtype=dtype)).shape == (8, 5)
        assert (with_rows @ randn(8, dtype=dtype)).shape == (8,)
        assert torch.sparse.sampled_addmm(with_rows, randn(8, 4, dtype=dtype), randn(4, 8, dtype=dtype)).shape == (8, 8)
        assert (with_rows + with_rows).shape == (8, 8)
        assert (with_rows @ with_rows).shape == (8, 8)
        assert torch.triangular_solve(randn(8, 2, dtype=dtype), with_rows).solution.shape == (8, 2)
    where = torch.zeros(2, 6, device=CUDA, dtype=torch.int64)
    listed = torch.sparse_coo_tensor(where, randn(6), (8, 8), check_invariants=False)
    assert torch.sparse.mm(listed, randn(8, 3)).shape == (8, 3)
    blocks = torch.sparse_bsr_tensor(rows[:5], columns[:4], randn(4, 2, 2), (8, 8), check_invariants=False)
    assert (blocks @ randn(8, 4)).shape == (8, 4)


def embeddings() -> None:
    words = torch.zeros(4, 16, device=CUDA, dtype=torch.int64)
    train(nn.Embedding(100, 32), words)
    train(nn.EmbeddingBag(100, 32, mode="sum"), words)
    sparse_embedding = nn.Embedding(100, 32, sparse=True).to(CUDA)
    sparse_embedding(words).sum().backward()
    torch.optim.SparseAdam(sparse_embedding.parameters()).step()


# --- cuSPARSELt ---
def half_sparse() -> None:
    dense = randn(128, 128, dtype=torch.float16)
    compressed = torch._cslt_compress(dense)
    assert torch._cslt_sparse_mm(compressed, randn(128, 64, dtype=torch.float16)).shape == (128, 64)


# --- norms, losses, random numbers, indexing: kernels of torch's own ---
def other_kernels() -> None:
    train(nn.Sequential(nn.GroupNorm(2, 8), nn.Dropout(0.5)), randn(4, 8, 16))
    train(nn.RMSNorm(16), randn(4, 16))
    train(nn.InstanceNorm2d(3, affine=True), randn(2, 3, 8, 8))
    logits = randn(16, 100, grad=True)
    F.cross_entropy(logits, torch.zeros(16, device=CUDA, dtype=torch.int64)).backward()
    assert torch.topk(randn(50), 5).values.shape == (5,)
    assert torch.sort(randn(5000)).values.shape == (5000,)
    assert torch.multinomial(torch.ones(10, device=CUDA), 2, replacement=True).shape == (2,)
    assert randn(4, 64).cumsum(1).shape == (4, 64)
    assert torch.bernoulli(torch.ones(10, device=CUDA)).shape == (10,)


# --- NVRTC ---
def kernels_compiled_at_run_time() -> None:
    double = torch.cuda.jiterator._create_jit_fn("template <typename T> T twice(T x) { return x + x; }")
    assert double(randn(16)).shape == (16,)
    assert torch.special.bessel_j0(randn(16)).shape == (16,)
    assert torch.gcd(
        torch.ones(4, device=CUDA, dtype=torch.int32), torch.ones(4, device=CUDA, dtype=torch.int32)
    ).shape == (4,)


# --- CUPTI ---
def profiler() -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        mlp()
    assert any(event.key == "aten::linear" for event in profile.key_averages())


# --- NCCL ---
def collectives() -> None:
    import tempfile

    from torch import distributed

    assert torch.cuda.nccl.version() >= (2,)
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("nccl", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        tensor = randn(16)
        distributed.all_reduce(tensor)
        distributed.broadcast(tensor, 0)
        distributed.all_gather_into_tensor(torch.empty_like(tensor), tensor)
        distributed.barrier()
        model = nn.parallel.DistributedDataParallel(nn.Linear(16, 4).to(CUDA), device_ids=[0])
        model(tensor.view(1, 16)).sum().backward()
        distributed.destroy_process_group()


# --- cuFile ---
def direct_storage_is_refused() -> None:
    refused = ""
    try:
        torch.cuda.gds.gds_register_buffer(torch.empty(1024, device=CUDA).untyped_storage())
    except RuntimeError as error:
        refused = str(error)
    assert "cuFile" in refused


def main(names: list[str]) -> int:
    failed = 0
    for name in names:
        try:
            globals()[name]()
            torch.cuda.synchronize()
        except Exception:
            failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"ok {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
