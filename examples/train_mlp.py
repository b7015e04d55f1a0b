"""Trains a small network under poolalloc and prints what its memory is used for. It needs one extra line: install()."""

import torch
from torch import nn

import poolalloc

poolalloc.install()

model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for batch in (16, 64, 256, 64):
    x = torch.randn(batch, 1024, device="cuda")
    nn.functional.mse_loss(model(x), x).backward()
    optimizer.step()
    optimizer.zero_grad()

print(poolalloc.fragmentation())
print(poolalloc.memory_summary())
