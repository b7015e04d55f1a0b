"""What is done with recordings, after the program or without it. Nothing here runs while a program is served.

    from poolalloc.analysis.replay import replay
    from poolalloc.analysis.trace import read

    print(replay(read("run.npz"), memory="40 GiB").devices[0].peak_reserved)

`trace` reads and writes recordings and imports other programs' files. `replay` puts one through poolalloc's engine,
`baselines` through torch's own allocators. `fit`, `tune`, `block_reuse` and `plan` answer what fits, which options,
which exact bins and which placement suit it. `report` and `live_blocks` say who holds the memory, `view` and
`replay_picture` show it. `compare` measures ways of doing the same thing, `costs` knows what drivers charge.

The package may import the top level of poolalloc, poolalloc.bench and poolalloc.sim; not poolalloc.cli.
"""

__all__ = []
