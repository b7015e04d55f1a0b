"""`poolalloc replay`: what poolalloc would have held for a recorded program, on a device that is only arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from poolalloc.cli.common import (
    NO,
    Json,
    allocator_names,
    config_help,
    fail,
    print_json,
    require_picture,
    require_writable,
    size_option,
    write_file,
    write_json,
)
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from poolalloc._internal.trace.format import Trace
    from poolalloc.analysis.baselines import Performed
    from poolalloc.analysis.plan import Worth
    from poolalloc.analysis.replay import DeviceResult, Replayer, Result
    from poolalloc.cli.driver_time import Priced
    from poolalloc.config import Config

SAMPLES = 2000


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("replay")(replay)


def replay(
    trace: Annotated[Path, typer.Argument(help="A trace, such as poolalloc import writes.", metavar="TRACE")],
    *,
    config: Annotated[str | None, typer.Option(help=config_help(), metavar="PROFILE|FILE")] = None,
    conf: Annotated[str | None, typer.Option(help="Options on top of it.", metavar="KEY:VALUE,...")] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Serve it from this plan, made by poolalloc plan.", metavar="PLAN.npz")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of each device, such as 40GiB. Default: as recorded, else 80 GiB or what it takes.",
            metavar="SIZE",
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Also perform it through torch on a simulated GPU under its allocators: default, expandable, settings "
            "such as max_split_size_mb:128, or poolalloc itself. Repeat for several.",
            metavar="ALLOCATOR",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="Where --against performs it: on a simulated GPU, or on this machine's real one, which also shows "
            "what the requests took.",
            metavar="simulated|real",
        ),
    ] = "simulated",
    costs: Annotated[
        str | None,
        typer.Option(
            help="Price list for the driver's time: a name or a file .json. Default: what was measured on the "
            "recorded device, else the list named default.",
            metavar="NAME",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the figures to this file as JSON.", metavar="FILE")
    ] = None,
    json: Json = False,
    png_path: Annotated[
        Path | None,
        typer.Option("--png", help="Draw memory over time into this file (needs matplotlib).", metavar="FILE"),
    ] = None,
    html_path: Annotated[
        Path | None,
        typer.Option(
            "--html",
            help="Write a page with memory over time and a map of all blocks; it opens offline.",
            metavar="FILE",
        ),
    ] = None,
) -> int:
    """Replay a recorded program through poolalloc, with no GPU: exact peaks, driver calls, and where memory runs out.

    The exit code is 0 if it fitted, 1 if it ran out of memory, 2 for bad input.

    Example: poolalloc replay run.npz --memory 24GiB --conf bin_limit:512KiB --png run.png

    Example: poolalloc replay run.npz --against default --against expandable --html run.html
    """
    from poolalloc._internal.atomic_files import write_text
    from poolalloc.analysis import costs as driver_costs
    from poolalloc.analysis import plan as planning
    from poolalloc.analysis import replay_picture as picture
    from poolalloc.analysis.replay import Replayer, require_memory
    from poolalloc.cli import driver_time
    from poolalloc.cli.progress import working
    from poolalloc.errors import PoolallocError

    require_writable({"--output": output, "--png": png_path, "--html": html_path}, inputs=[trace])
    require_picture("--png", png_path)
    names = allocator_names(against or [])
    memory_bytes = None if memory is None else size_option("--memory", memory)
    no_picture = picture.missing_matplotlib() if png_path is not None else None
    try:
        settings = load_config(config, conf)
        served_from = None if plan is None else planning.read(plan)
        memory_bytes = None if memory_bytes is None else require_memory(memory_bytes)
        real = _is_real(device, memory, names)
        require_performable(names, real=real)
        with working(f"replaying {trace.name}"):
            recording = read_trace(trace)
            table = driver_costs.find(costs, _recorded_device(recording))
            replayer = Replayer(recording)
            result = replayer.run(settings, memory_bytes, SAMPLES, placements=html_path is not None, plan=served_from)
            worth = None
            if served_from is not None and result.out_of_memory is None:
                without = replayer.run(settings, memory_bytes)
                worth = planning.Worth.of(result, without) if without.out_of_memory is None else None
        performed = perform_against(
            trace, replayer, result.memory_bytes, names, placements=html_path is not None, real=real
        )
        modelled = [one for one in performed if one.device_name is None]
        times = driver_time.times_of(result, modelled, replayer.phases, table)
        found = _Found(trace.name, recording, result, performed, worth, times)
        if json:
            print_json(_document(found))
        else:
            _print_all(found)
        if output is not None:
            write_json(output, _document(found), silent=json)
        if png_path is not None and no_picture is None:
            write_file(png_path, lambda path: picture.write_png(result, trace.name, path), silent=json)
        if html_path is not None:
            page = _page_of(trace.name, result, performed, times, recording)
            write_file(html_path, lambda path: write_text(path, page), silent=json)
    except PoolallocError as error:
        fail(str(error))
    if no_picture is not None:
        fail(no_picture)
    return 0 if result.out_of_memory is None else NO


class _Found(NamedTuple):
    """All that is said of a replay."""

    name: str
    recording: Trace
    result: Result
    performed: list[Performed]
    worth: Worth | None
    times: Sequence[Priced]


def _print_all(found: _Found) -> None:
    from poolalloc.cli import driver_time
    from poolalloc.cli.tables import say, stdout_console

    print_result(found.result, found.recording, found.name)
    if found.worth is not None:
        say(stdout_console(), f"plan: {found.worth}")
    print_performed(found.performed)
    driver_time.show(found.times)


def _document(found: _Found) -> dict[str, object]:
    from poolalloc.cli import driver_time

    return {
        **found.result.to_json(),
        "trace": found.name,
        "provenance": found.recording.provenance,
        "performed": [one.to_json() for one in found.performed],
        "plan": None if found.worth is None else {**vars(found.worth), "cost": found.worth.cost},
        "driver_time": driver_time.to_json(found.times),
    }


def require_performable(names: Sequence[str], *, real: bool = False) -> None:
    """Check, before the work, that these allocators can be performed here.

    Raises:
        BaselineError: they cannot.
    """
    if names:
        from poolalloc.analysis import baselines

        baselines.require(names, real=real)


def perform_against(
    path: Path, replayer: Replayer, memory: int, names: Sequence[str], *, placements: bool, real: bool = False
) -> list[Performed]:
    """Perform the trace under each of torch's allocators named, simulated or real.

    Raises:
        BaselineError: one of them cannot be performed here.
    """
    if not names:
        return []
    from poolalloc.analysis import baselines
    from poolalloc.cli.progress import working

    points = replayer.points(SAMPLES)
    found = []
    for name in names:
        with working(f"performing {path.name} under {baselines.title(name)}"):
            found.append(
                baselines.perform(path, replayer.trace, name, memory, points=points, placements=placements, real=real)
            )
    return found


def _is_real(device: str, memory: str | None, against: Sequence[str]) -> bool:
    if device not in ("simulated", "real"):
        fail(f'--device: "{device}" is neither simulated nor real')
    if device == "real" and not against:
        fail("--device real: say with --against which allocators are to perform the trace there")
    if device == "real" and memory is not None:
        fail("--memory is the memory of modelled and simulated devices; it cannot be used with --device real")
    return device == "real"


def _recorded_device(trace: Trace) -> str | None:
    return next((info.name for info in trace.devices if info.name), None)


def print_performed(performed: list[Performed]) -> None:
    """Print what torch's allocators reserved for the same requests."""
    if not performed:
        return
    from poolalloc.cli.tables import Table, say, stdout_console

    console = stdout_console()
    real = next((one.device_name for one in performed if one.device_name is not None), None)
    where = "simulated devices" if real is None else f"{real}, a real device"
    headings = ["peak requested", "peak reserved", "overhead", *(["seconds"] if real else [])]
    table = Table(f"performed through torch on {where}, all together", ["allocator"], headings)
    for one in performed:
        row = one.row
        if row.error is not None:
            table.add(row.allocator + " (FAILED)", *("-" for _ in headings))
            continue
        overhead = f"{row.overhead:.4f}" if row.overhead else "-"
        lost = " (OUT OF MEMORY)" if row.out_of_memory else ""
        table.add(
            row.allocator + lost,
            format_size(row.peak_requested_bytes or 0),
            format_size(row.peak_reserved_bytes or 0),
            overhead,
            *([f"{one.observed.seconds:.4g}" if one.observed else "-"] if real else []),
        )
    table.print(console)
    for one in performed:
        if one.row.error is not None:
            line = f"{one.row.allocator} failed: {one.row.error.splitlines()[0]}"
            say(console, line)


def _facts(of: Priced | Performed) -> dict[str, str]:
    """What the page's table says besides memory: time is measured on a real device, and modelled elsewhere."""
    from poolalloc.cli.driver_time import Priced

    facts = {}
    if isinstance(of, Priced):
        mapped, total, *parts = of.time.cells()
        facts = {"handles mapped": mapped, "driver time (modelled)": f"{total} ms"}
        facts["start-up, a step of each half"] = f"{' | '.join(parts)} ms"
    elif of.observed is not None:
        facts["seconds (measured)"] = f"{of.observed.seconds:.4g}"
    return facts


def _page_of(name: str, result: Result, performed: Sequence[Performed], times: Sequence[Priced], trace: Trace) -> str:
    from poolalloc.analysis import view

    prices = iter(times)
    layers = view.of_result(result, _facts(next(prices)))
    for one in performed:
        facts = _facts(one if one.device_name is not None else next(prices))
        if one.observed is not None:
            layers.append(view.of_observed(one.row.allocator, one.observed, facts, one.out_of_memory, one.device_name))
    memory = f"{format_size(result.memory_bytes)} a device ({result.memory_source})"
    options = f"; options of poolalloc: {result.config}" if result.config else ""
    notes = [f"{len(trace):,} events; {memory}{options}", f"Driver time is {times[0].time.prices.label}."]
    return view.render(trace, layers, name, notes)


def read_trace(path: Path) -> Trace:
    """Return the trace in a file; ends the command if nothing was allocated in it.

    Raises:
        TraceError: it is no trace.
    """
    from poolalloc.analysis.trace import TraceError, read

    trace = read(path)
    if not trace.used_devices():
        raise TraceError(f"{path.name}: nothing is allocated in it")
    return trace


def load_config(config: str | None, conf: str | None) -> Config:
    """Return the options that the command line and the environment ask for.

    Raises:
        ConfigError: an option is wrong.
    """
    from poolalloc.config import Config

    return Config.load(config=config, conf=conf)


def print_result(result: Result, trace: Trace, name: str) -> None:
    """Print the figures as a table, and below it what else happened."""
    from poolalloc.cli.tables import Table, say, stdout_console

    console = stdout_console()
    where = f"{format_size(result.memory_bytes)} a device ({result.memory_source})"
    table = Table(
        f"{name}: {len(trace):,} events; {where}",
        ["device", "source"],
        ["peak requested", "peak live", "peak pending", "peak resident", "peak reserved", "overhead"],
        silent={"device": ("0", ""), "peak pending": (format_size(0), "-")},
    )
    for device in result.devices:
        for row in _rows(device, whole=result.out_of_memory is None):
            table.add(*row)
    table.print(console)
    lines = [f"driver calls: {', '.join(f'{count:,} {kind}' for kind, count in result.driver_calls.items()) or 'none'}"]
    stats = [device.stats for device in result.devices]
    retries, completed = (sum(row[name] for row in stats) for name in ("retries", "pending_completed"))
    lines.append(f"made room first: {retries:,} times; late frees completed: {completed:,}")
    hits, misses, resyncs = (sum(row[name] for row in stats) for name in ("plan_hits", "plan_misses", "plan_resyncs"))
    if hits + misses:
        lines.append(
            f"plan: {hits:,} of {hits + misses:,} requests served from it ({hits / (hits + misses):.2%}), followed "
            f"again {resyncs:,} times"
        )
    hits, misses, released = (sum(row[name] for row in stats) for name in ("kept_hits", "kept_misses", "kept_released"))
    if hits + misses:
        lines.append(
            f"exact bins: {hits:,} of {hits + misses:,} requests of their sizes served from kept blocks "
            f"({hits / (hits + misses):.2%}); {released:,} kept blocks released"
        )
    if result.config:
        lines.append(f"options: {result.config}")
    lines.append(
        f"{result.events:,} events in {result.core_seconds:.3f} s of one core: "
        f"{result.events_per_second / 1e6:.1f} million a second"
    )
    lost = result.out_of_memory
    if lost is not None:
        lines.append(
            f"OUT OF MEMORY at event {lost.event:,} of {result.of_events:,}, {lost.seconds:.6f} s after the first, on "
            f"device {lost.device}, asking for {format_size(lost.requested)}. Figures are of what came before."
        )
        lines.append(lost.message)
    for line in lines:
        say(console, line)


def _rows(device: DeviceResult, *, whole: bool) -> list[tuple[str, ...]]:
    overhead = "-" if device.overhead is None else f"{device.overhead:.4f}"
    peaks = (device.peak(name) for name in ("requested", "live", "pending", "resident", "reserved"))
    rows = [(str(device.device), "poolalloc, replayed", *map(format_size, peaks), overhead)]
    recorded = device.recorded
    if recorded is not None:
        requested = device.peak_requested
        # What was recorded goes on where the replay ran out of memory.
        overhead = f"{recorded.peak_reserved / requested:.4f}" if requested and whole else "-"
        rows.append(("", recorded.source, *"----", format_size(recorded.peak_reserved), overhead))
    return rows
