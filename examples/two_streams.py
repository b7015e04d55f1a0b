"""Hands a tensor to a second stream: record_stream keeps its memory until that stream has used it."""

import torch

import poolalloc

poolalloc.install()

side = torch.cuda.Stream()
for _ in range(4):
    batch = torch.randn(1024, 1024, device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        result = batch @ batch
    batch.record_stream(side)
    del batch  # its memory is pending until `side` has used it

torch.cuda.synchronize()
for stream, share in poolalloc.fragmentation().streams.items():
    print(f"stream {stream:#x}: {share.requested:,} bytes requested of {share.reserved:,} reserved")
