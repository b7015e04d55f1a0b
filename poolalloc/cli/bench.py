"""`poolalloc bench`: compares allocators on workloads and scripts, prints a table and draws a report."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from poolalloc.cli.common import (
    NO,
    Json,
    allocator_names,
    fail,
    print_error,
    print_json,
    require_picture,
    require_writable,
    size_option,
    time_option,
    write_file,
    write_json,
)

if TYPE_CHECKING:
    from poolalloc.analysis.costs import PriceList
    from poolalloc.bench.results import Results

DEFAULT_ALLOCATORS = ("default", "expandable", "poolalloc")
SCRIPT_ARGUMENTS = "poolalloc.script_arguments"


class BenchCommand(typer.core.TyperCommand):
    """Keeps what follows `--` apart: those are the script's arguments, not workloads."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Cut the arguments at the first `--`."""
        if "--" in args:
            cut = args.index("--")
            ctx.meta[SCRIPT_ARGUMENTS] = args[cut + 1 :]
            args = args[:cut]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(name="bench", cls=BenchCommand)(bench)


def bench(  # noqa: PLR0917
    context: typer.Context,
    workloads: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORKLOAD", help="Names of workloads, or paths of scripts. Default: all."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare these allocators: names as --list has them, or settings of torch's such as "
            "max_split_size_mb:128. Repeat for several, or put commas between names. "
            f"Default: {','.join(DEFAULT_ALLOCATORS)}.",
            metavar="ALLOCATOR",
        ),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="The card to simulate. Default: h100.", metavar="NAME")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="On a simulated GPU, or on this machine's real one. Default: real if there is one.",
            metavar="simulated|real",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of the simulated card, such as 24GiB.", metavar="SIZE")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the workloads.", metavar="tiny|small|full")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each workload. Default: its own.", metavar="N")] = None,
    costs: Annotated[
        str | None,
        typer.Option(help="Price list for the driver's time: a name or a file .json.", metavar="NAME|FILE"),
    ] = None,
    driver_costs: Annotated[
        str | None,
        typer.Option(
            help="The same, and the simulated driver takes that time: steps are compared by the clock.",
            metavar="NAME|FILE",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the figures to this file as JSON, as they come.", metavar="FILE"),
    ] = None,
    json: Json = False,
    html_path: Annotated[
        Path | None, typer.Option("--html", help="Write a report that opens offline.", metavar="FILE")
    ] = None,
    png_path: Annotated[
        Path | None, typer.Option("--png", help="Draw the report (needs matplotlib).", metavar="FILE")
    ] = None,
    timeout: Annotated[str, typer.Option(help="When a cell is ended.", metavar="TIME")] = "15min",
    list_names: Annotated[bool, typer.Option("--list", help="Print the workloads and allocators, and exit.")] = False,
) -> int:
    """Compare what allocators reserve for the same program, each in its own process.

    A program is a workload by name (see --list) or any script: its arguments follow `--`. Runs on the simulated GPU
    where there is no real one. Exit code 1 if a cell failed, 2 for bad input.

    Example: poolalloc bench gpt serving -o results.json --html report.html

    Example: poolalloc bench train.py --gpu a100 -- --layers 12
    """
    from poolalloc.bench import harness, picture, report
    from poolalloc.bench.progress import Progress

    if list_names:
        print_names()
        return 0
    seconds = time_option("--timeout", timeout)
    require_writable({"--output": output, "--html": html_path, "--png": png_path}, make_folders=True)
    require_picture("--png", png_path)
    no_picture = missing_picture() if png_path is not None else None
    cells = make_cells(workloads or all_workloads(), against, size, steps, context.meta.get(SCRIPT_ARGUMENTS, []))
    charged = price_list("--costs", costs) if driver_costs is None else price_list("--driver-costs", driver_costs)
    torch, chosen = choose_device(gpu, device, memory, charged if driver_costs is not None else None)
    command = shlex.join(["poolalloc", *sys.argv[1:]])

    note_dropped_variables()

    for number in (signal.SIGTERM, signal.SIGHUP):  # unwind, so that a cell's process is not left behind
        signal.signal(number, lambda received, _: sys.exit(128 + received))

    def keep(results: Results) -> None:
        if output is not None:
            write_json(output, results.to_json(), silent=True)

    with Progress(cells, chosen) as progress:
        results = harness.run_cells(cells, harness.Setting(chosen, torch, seconds, charged), command, progress, keep)
    if json:
        print_json(results.to_json())
    else:
        print_results(results)
        if output is not None:
            print(f"wrote {output}")
    print_failures(results)
    if html_path is not None:
        write_file(html_path, lambda path: report.write_html(results, path), silent=json)
    if no_picture is not None:
        fail(no_picture)
    if png_path is not None:
        write_file(png_path, lambda path: picture.write_png(results, path), silent=json)
    return NO if any(row.error is not None for row in results.rows) else 0


def print_results(results: Results) -> None:
    """Print the table, and what was skipped under it."""
    from poolalloc.bench.panels import device_text
    from poolalloc.bench.table import HEADINGS, LEAST_FIRST, NAMES, SILENT, about, cells
    from poolalloc.cli.tables import Table, say, stdout_console

    console = stdout_console()
    table = Table(device_text(results), HEADINGS[:NAMES], HEADINGS[NAMES:], SILENT, LEAST_FIRST)
    for row in results.rows:
        table.add(*cells(row, results))
    table.print(console)
    say(console, about(results))
    skipped = {row.workload: row.skipped for row in results.rows if row.skipped is not None}
    for workload, reason in skipped.items():
        say(console, f"{workload} skipped: {reason}")


def print_failures(results: Results) -> None:
    """Print the errors of cells that failed, with what their programs said last under them."""
    for row in results.rows:
        if row.error is not None:
            what, *said = row.error.splitlines()
            print_error(f"{row.workload} under {row.allocator} failed: {what}")
            for line in said:
                print(line, file=sys.stderr, flush=True)


def note_dropped_variables() -> None:
    """Say which settings of torch's allocator the cells do not get from this environment."""
    from poolalloc.bench.allocators import TORCH_VARIABLES

    for name in TORCH_VARIABLES:
        if name in os.environ:
            print_error(f"{name} is not passed on; every allocator runs with its own settings")


def print_names() -> None:
    """Print what can be benched."""
    from poolalloc.bench.allocators import ALLOCATORS
    from poolalloc.bench.workloads import describe, known

    print("workloads:")
    for name, path in known().items():
        workload = describe(name, path)
        if not workload.is_script:
            without = f"; skipped: {workload.missing}" if workload.missing else ""
            print(f"  {name:16} sizes {', '.join(workload.sizes)}; {workload.steps} steps{without}")
    print("allocators:")
    for allocator in ALLOCATORS.values():
        print(f"  {allocator.name:16} {allocator.title}")


def all_workloads() -> list[str]:
    """Return the names of all workloads; ends the command if there are none to be found."""
    from poolalloc.bench.workloads import known

    return list(known()) or fail("no workload is installed with this package; give the path of a script")


def missing_picture() -> str | None:
    """Return why the PNG cannot be drawn in the end, if it cannot; says so before the work, which goes on."""
    from poolalloc.bench.picture import MissingReportError, require_matplotlib

    try:
        require_matplotlib()
    except MissingReportError as error:
        print_error(f"{error}; everything else is done")
        return str(error)
    return None


def make_cells(
    names: list[str], against: list[str] | None, size: str | None, steps: int | None, arguments: list[str]
) -> list[Any]:
    """Return every workload under every allocator; ends the command for a name that does not exist."""
    from poolalloc.bench.allocators import ALLOCATORS, named
    from poolalloc.bench.harness import Cell
    from poolalloc.bench.workloads import Workload, WorkloadError, choose_size, find
    from poolalloc.errors import UnknownNameError

    try:
        chosen = [named(name) for name in allocator_names(DEFAULT_ALLOCATORS if against is None else against)]
    except UnknownNameError as error:
        fail(f"--against: {error}")
    if not chosen:
        fail(f"--against: name at least one of {', '.join(ALLOCATORS)}")
    if steps is not None and steps < 1:
        fail(f"--steps: {steps} is not a positive number of steps")
    found: list[tuple[Workload, str | None, int]] = []
    try:
        for name in dict.fromkeys(names):
            workload = find(name)
            if workload.is_script:
                if size is not None or steps is not None:
                    raise WorkloadError(
                        f"{name} is a script: --size and --steps are for workloads; pass its arguments after --"
                    )
                found.append((workload, None, 0))
            else:
                found.append((workload, choose_size(workload, size), steps or workload.steps or 1))
    except WorkloadError as error:
        fail(str(error))
    if arguments and not (len(found) == 1 and found[0][0].is_script):
        fail("arguments after -- are for a script, and for one script only")
    return [
        Cell(workload, allocator, its_size, its_steps, arguments)
        for workload, its_size, its_steps in found
        for allocator in chosen
    ]


def price_list(option: str, name: str | None) -> PriceList:
    """Return a price list by name or path; ends the command if there is none such."""
    from poolalloc.analysis import costs

    try:
        return costs.find(name)
    except costs.CostError as error:
        fail(f"{option}: {error}")


def choose_device(
    gpu: str | None, device: str | None, memory: str | None, prices: PriceList | None = None
) -> tuple[Any, Any]:
    """Return the torch that will run and the device to run on; ends the command if there is none such.

    `prices` are what the work of a simulated driver takes.
    """
    from poolalloc.bench.devices import Device, DeviceError, real_gpus, torch_install

    if device not in (None, "simulated", "real"):
        fail(f'--device: "{device}" is neither simulated nor real')
    if gpu == "real":
        fail("--gpu names a card to simulate; the machine's own GPU is --device real")
    for option, value, what in (
        ("--gpu", gpu, "the card to simulate"),
        ("--memory", memory, "the memory of a simulated card"),
        ("--driver-costs", prices, "the time of a simulated driver"),
    ):
        if device == "real" and value is not None:
            fail(f"{option} is {what}; it cannot be used with --device real")
    memory_bytes = None if memory is None else size_option("--memory", memory)
    try:
        torch = torch_install()
        if device == "real" or (device is None and gpu is None and memory is None and prices is None):
            if count := real_gpus():
                return torch, Device(simulated=False, gpu="real", count=count)
            if device == "real":
                raise DeviceError("--device real: torch sees no CUDA device here; without it the simulated one is used")
        simulated = Device(simulated=True, gpu=gpu or Device.gpu, memory_bytes=memory_bytes, prices=prices)
        simulated.check()
    except DeviceError as error:
        fail(str(error))
    return torch, simulated
