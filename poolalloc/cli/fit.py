"""`poolalloc fit`: whether a recorded program fits a smaller device, and what stands in the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poolalloc.cli.common import NO, Json, allocator_names, config_help, fail, print_json, size_option
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from rich.console import Console

    from poolalloc.analysis.fit import DeviceFit, Fit

ROWS = 8  # of each list of shares


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("fit")(fit)


def fit(
    trace: Annotated[Path, typer.Argument(help="A trace, such as poolalloc import writes.", metavar="TRACE")],
    *,
    memory: Annotated[
        str, typer.Option(help="Memory that poolalloc may have on each device, such as 24GiB.", metavar="SIZE")
    ],
    config: Annotated[
        list[str] | None,
        typer.Option(help=config_help("Repeat to judge several. "), metavar="PROFILE|FILE"),
    ] = None,
    conf: Annotated[str | None, typer.Option(help="Options on top of it.", metavar="KEY:VALUE,...")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Also judge an allocator of torch's on simulated GPUs: default, expandable, or settings such as "
            "max_split_size_mb:128. Takes some ten performances. Repeat for several.",
            metavar="ALLOCATOR",
        ),
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(
            help="Price list for the driver's time: a name or a file .json. Default: default.", metavar="NAME"
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Say whether a recorded program fits, under which allocator, by how much, and what it holds when it holds most.

    A card has less for its programs than its name says: the CUDA context takes some hundred MiB. The exit code is 0 if
    it fits under poolalloc as it is configured first, 1 if not, 2 for bad input.

    Example: poolalloc fit run.npz --memory 24GiB

    Example: poolalloc fit run.npz --memory 24GiB --against expandable --config default --config serving
    """
    from poolalloc.analysis import costs as driver_costs
    from poolalloc.analysis import fit as fitting
    from poolalloc.analysis.replay import require_memory
    from poolalloc.cli.progress import working
    from poolalloc.cli.replay import load_config, read_trace
    from poolalloc.errors import PoolallocError

    wanted = size_option("--memory", memory)
    try:
        named = {name: load_config(name, conf) for name in config or []}
        settings = named.pop(config[0]) if config else load_config(None, conf)
        memory_bytes = require_memory(wanted)
        with working(f"fitting {trace.name}") as bar:
            recording = read_trace(trace)
            prices = driver_costs.find(costs)
            found = fitting.fit(
                recording,
                memory_bytes,
                settings,
                also=named,
                against=allocator_names(against or []),
                prices=prices,
                progress=bar.at,
            )
    except PoolallocError as error:
        fail(str(error))
    if json:
        print_json({**found.to_json(), "trace": trace.name})
    else:
        print_fit(found, trace.name, config[0] if config else "")
    return 0 if found.fits else NO


def print_fit(found: Fit, name: str, config: str) -> None:
    """Print the verdict for each device and what its largest live set consists of; `config` is what was asked for."""
    from poolalloc.cli.tables import say, stdout_console

    console = stdout_console()
    _print_verdicts(console, found, config)
    for device in found.devices:
        for line in _verdict(found, device, name):
            say(console, line)
        _print_live_blocks(console, device)


def _print_verdicts(console: Console, found: Fit, config: str) -> None:
    """Every allocator and configuration in one table."""
    from poolalloc._internal.driver_work import HEADINGS
    from poolalloc.cli.tables import Table

    table = Table(
        f"devices of {format_size(found.memory_bytes)}",
        ["device", "allocator", "configuration", ""],
        ["to spare", "smallest memory"],
        silent={"device": ("0",)},
    )
    free = Table(
        f"without a limit; the driver's time is {found.prices.label}",
        ["device", "allocator", "configuration"],
        ["peak reserved", "overhead", *HEADINGS],
        silent={"device": ("0",)},
    )
    for verdict in found.verdicts:
        ours = verdict.allocator == "poolalloc"
        spare = verdict.spare(found.memory_bytes)
        names = (
            str(verdict.device),
            "poolalloc, replayed" if ours else f"{verdict.allocator}, performed",
            (verdict.config or config or found.config or "defaults") if ours else "-",
        )
        table.add(
            *names,
            "fits" if verdict.fits else "does NOT fit",
            "-" if spare is None else format_size(spare) if spare >= 0 else f"-{format_size(-spare)}",
            _smallest(verdict.smallest_memory),
        )
        overhead = "-" if verdict.overhead is None else f"{verdict.overhead:.4f}"
        free.add(
            *names,
            format_size(verdict.peak_reserved),
            overhead,
            *verdict.driver_work.price(found.prices).cells(),
        )
    if len(found.verdicts) > len(found.devices):
        table.print(console)
    free.print(console)


def _smallest(memory: int | None) -> str:
    return "none: the options forbid it" if memory is None else format_size(memory)


def _verdict(found: Fit, device: DeviceFit, name: str) -> list[str]:
    memory = format_size(found.memory_bytes)
    spare = device.spare(found.memory_bytes)
    room = f", with {format_size(spare)} to spare" if spare is not None and spare >= 0 else ""
    verdict = f"fits {memory}{room}" if device.fits else f"does NOT fit {memory}"
    lines = [f"{name}, device {device.device}: {verdict} (poolalloc, {found.config or 'default options'})"]
    if not device.fits and spare is not None and spare < 0:
        lines.append(f"  missing: {format_size(-spare)}")
    lost = device.out_of_memory
    if lost is not None:
        lines.append(
            f"  runs out of memory at event {lost.event:,}, {lost.seconds:.6f} s after the first, asking for "
            f"{format_size(lost.requested)}"
        )
    if device.idle_in_pools:
        lines.append(
            "  idle then in private pools that a CUDA graph may touch, which serves only them: "
            f"{format_size(device.idle_in_pools)}"
        )
    lines.append(f"  smallest memory that fits: {_smallest(device.smallest_memory)}")
    lines.append(
        f"  peaks without a limit: {format_size(device.peak_reserved)} reserved, "
        f"{format_size(device.peak_requested)} requested"
    )
    if device.recorded is not None:
        peak = device.recorded.peak_reserved
        fits = "more than this memory" if peak > found.memory_bytes else "which this memory holds, too"
        lines.append(f"  {device.recorded.source}, had reserved {format_size(peak)} at its peak: {fits}")
    return lines


def _print_live_blocks(console: Console, device: DeviceFit) -> None:
    from poolalloc.cli.live_blocks import by, table_of

    live = device.peak_blocks
    title = (
        f"the largest live set: {format_size(live.requested)} in {live.blocks:,} blocks, after event "
        f"{live.event:,}, {live.seconds:.6f} s after the first"
    )
    groups = [
        by("size class", live.by_size, ROWS),
        by("phase", live.by_phase, ROWS),
        by("lifetime", live.by_lifetime, ROWS),
        by("scope", live.by_scope, ROWS),
        by("stack", live.by_line, ROWS),
    ]
    table_of(live, title, groups).print(console)
    if not live.by_stack:
        console.print("  by stack: none was recorded", highlight=False)
