"""`poolalloc report`: who holds a recorded program's memory, at its peak and at its end, and what grows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poolalloc.cli.common import Json, fail, print_json, require_picture, require_writable, write_file
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from rich.console import Console

    from poolalloc.analysis.live_blocks import LiveBlocks
    from poolalloc.analysis.report import DeviceReport, Report
    from poolalloc.analysis.report.growth import Growth


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("report")(report)


def report(
    trace: Annotated[Path, typer.Argument(help="A trace, of poolalloc or made by poolalloc import.", metavar="TRACE")],
    *,
    rows: Annotated[int, typer.Option(help="The most rows of each list.", min=1, metavar="N")] = 12,
    depth: Annotated[int, typer.Option(help="How deep the tree of scopes goes.", min=1, metavar="N")] = 4,
    png: Annotated[
        Path | None, typer.Option(help="Draw who holds how much over time into this picture.", metavar="FILE.png")
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(
            help="Price list for the driver's time: a name or a file .json. Default: default.", metavar="NAME"
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Say who holds a recorded program's memory at its peak and at its end, by line and by module, and what grows.

    Lines are known where stacks were recorded (poolalloc run --record run.npz --stacks, or a snapshot of torch's),
    modules where the program called poolalloc.name_modules(model).

    Example: poolalloc report run.npz

    Example: poolalloc report run.npz --depth 2 --png who.png
    """
    from poolalloc.analysis import costs as driver_costs
    from poolalloc.analysis.replay import Replayer
    from poolalloc.analysis.replay_picture import missing_matplotlib
    from poolalloc.analysis.report import report as make_report
    from poolalloc.analysis.report.picture import write_png
    from poolalloc.cli import driver_time
    from poolalloc.cli.progress import working
    from poolalloc.cli.replay import read_trace
    from poolalloc.errors import PoolallocError

    require_writable({"--png": png}, inputs=[trace])
    require_picture("--png", png)
    no_picture = missing_matplotlib() if png is not None else None
    try:
        with working(f"reading {trace.name}"):
            recording = read_trace(trace)
            prices = driver_costs.find(costs)
            found = make_report(recording)
            replayer = Replayer(recording)
            replayed = replayer.run(samples=1)
            times = driver_time.times_of(replayed, [], replayer.phases, prices)
    except PoolallocError as error:
        fail(str(error))
    if json:
        document = {**found.to_json(), "trace": trace.name, "driver_time": driver_time.to_json(times)}
        print_json(document)
    else:
        print_report(found, trace.name, rows, depth)
        driver_time.show(times)
    if no_picture is not None:
        fail(no_picture)
    if png is not None:
        write_file(png, lambda path: write_png(recording, trace.name, path, depth), silent=json)
    return 0


def print_report(found: Report, name: str, rows: int, depth: int) -> None:
    """Print everything as tables."""
    from poolalloc.cli.tables import say, stdout_console

    console = stdout_console()
    steps = f"{found.steps:,} steps" if found.steps else "no steps known"
    say(console, f"{name}: {found.events:,} events in {found.seconds:.3f} s, {steps}")
    for device in found.devices:
        _print_device(console, device, rows, depth)


def _print_device(console: Console, device: DeviceReport, rows: int, depth: int) -> None:
    from poolalloc.cli.tables import say

    name = f" ({device.name})" if device.name else ""
    say(
        console,
        f"device {device.device}{name}: {device.allocations:,} allocations of {format_size(device.allocated)} in all, "
        f"{format_size(device.peak.requested)} held at the peak, {format_size(device.end.requested)} at the end",
    )
    peak = f"{device.peak.seconds:.6f} s after the first event, event {device.peak.event:,}"
    _print_live_blocks(console, device.peak, f"held at the peak, {peak}", rows, depth)
    if device.end.blocks > 0 and device.end.event != device.peak.event:
        _print_live_blocks(console, device.end, "held at the end", rows, depth)
    _print_growth(console, device.growth, rows)


def _print_live_blocks(console: Console, live: LiveBlocks, title: str, rows: int, depth: int) -> None:
    from poolalloc.cli.live_blocks import by, by_scope, table_of
    from poolalloc.cli.tables import say

    groups = [by_scope(live, 2 * rows, depth)] if live.by_scope else []
    least = live.requested // 1000
    lines = by("line", live.by_line, rows, least) if live.by_line else by("size class", live.by_size, rows, least)
    groups += [lines, *([by("phase", live.by_phase, rows, least)] if len(live.by_phase) > 1 else [])]
    size = f"{format_size(live.requested)} in {live.blocks:,} blocks"
    table_of(live, f"{title}: {size}", groups).print(console)
    if not live.by_line:
        say(console, "  by line: no stacks were recorded (poolalloc run --record FILE --stacks)")


def _print_growth(console: Console, growth: Growth, rows: int) -> None:
    from poolalloc.analysis.live_blocks import shown
    from poolalloc.analysis.report.growth import FEWEST
    from poolalloc.cli.tables import Table, say

    step = "step" if growth.found else "part"  # a twentieth of the recording
    if growth.steps == 0:
        say(console, f"growth: the recording is too short to tell; {FEWEST} steps are enough")
        return
    if not growth.left_behind:
        parts = "" if growth.found else " of the recording"
        say(console, f"growth: none in the {growth.steps:,} {step}s{parts} looked at")
        return
    title = f"growth: every {step} leaves {format_size(round(growth.per_step))} behind; {growth.steps:,} looked at"
    table = Table(
        title, ["left behind by", "in scope"], [f"{step}s", "blocks", f"a {step}", "in all"], {"in scope": ("",)}
    )
    for each in growth.left_behind[:rows]:
        table.add(
            shown(each.label),
            shown(each.scope),
            f"{each.steps:,}",
            f"{each.blocks:,}",
            format_size(round(each.requested / growth.steps)),
            format_size(each.requested),
        )
    table.print(console)
    if len(growth.left_behind) > rows:
        say(console, f"  and {len(growth.left_behind) - rows:,} more")
