"""Runs out of memory on purpose, prints the first line of the error, and retries with a smaller batch."""

import torch

import poolalloc

poolalloc.install({"memory_limit": "512 MiB"})

batch = 1024
while True:
    try:
        activations = torch.empty(batch, 2**20, dtype=torch.uint8, device="cuda")
        break
    except RuntimeError as error:
        print(str(error).splitlines()[0])
        batch //= 2
print(f"a batch of {batch} fits")
