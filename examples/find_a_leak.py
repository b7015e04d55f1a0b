"""Trains a small transformer that keeps what it should let go, records ten steps, and says which line and module it is.

Writes leak.npz into the current folder: `poolalloc report leak.npz --png leak.png` says the same and draws it.
"""

from pathlib import Path

import torch
from torch import nn

import poolalloc
from poolalloc.analysis.report import report
from poolalloc.analysis.trace import read
from poolalloc.sizes import format_size

poolalloc.install()

layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).cuda()
optimizer = torch.optim.AdamW(model.parameters())
poolalloc.name_modules(model)

history = []
with poolalloc.record("leak.npz", stacks=True):
    for step in range(12):
        poolalloc.mark(f"step {step}")
        with poolalloc.scope("train"):
            batch = torch.randn(8, 128, 256, device="cuda")
            loss = (model(batch) - batch).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with poolalloc.scope("log"):
            history.append((step, loss.detach() * torch.ones(64, 1024, device="cuda")))  # should be loss.item()

(device,) = report(read(Path("leak.npz"))).devices
print(f"{format_size(device.peak.requested)} held at the peak, by line:")
for share in device.peak.by_line[:3]:
    print(f"  {format_size(share.requested):>10}  {share.label}")
print("left behind by every step:")
for leak in device.growth.left_behind:
    print(f"  {format_size(leak.requested // device.growth.steps):>10}  {leak.label}, in scope {leak.scope}")
