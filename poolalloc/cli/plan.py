"""`poolalloc plan`: places the blocks of a recorded program whose steps repeat, for the next run to be served from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poolalloc.cli.common import fail, require_writable, size_option, write_file
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from poolalloc.plan import Found, Plan

SECONDS = 10.0


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("plan")(plan)


def plan(
    trace: Annotated[Path, typer.Argument(help="A trace, such as poolalloc run --record writes.", metavar="TRACE")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The plan's file.", metavar="PLAN.npz")],
    seconds: Annotated[
        float, typer.Option(help="How long to look for a lower placement.", metavar="SECONDS", min=0, max=1e6)
    ] = SECONDS,
    above: Annotated[
        str | None, typer.Option(help="Plan requests larger than this; 128 KiB if not given.", metavar="SIZE")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write what was found to this file.")] = None,
) -> int:
    """Plan where the blocks of a program go whose steps ask for the same sizes again and again.

    Record it from its start over at least two whole steps, three show more. The next run is served from the plan by
    poolalloc run --plan, or install(plan=...); what it does otherwise is served as without one.

    Example: poolalloc plan run.npz -o plan.npz --seconds 60
    """
    from poolalloc import plan as planning
    from poolalloc.cli.progress import working
    from poolalloc.output import write_text
    from poolalloc.trace import TraceError, read

    require_writable("--output", output)
    require_writable("--json", json_path)
    limit = planning.ABOVE if above is None else size_option("--above", above)
    try:
        recording = read(trace)
    except TraceError as error:
        fail(str(error))
    try:
        with working(f"planning {trace.name}", total=100) as bar:
            made, found = planning.make(
                recording,
                above=limit,
                seconds=seconds,
                progress=lambda done, whole: bar.at(int(100 * done / (whole or 1)), 100),
            )
    except planning.PlanError as error:
        fail(f"{trace.name}: {error}")
    _print(made, found, trace.name)
    write_file(output, lambda path: planning.write(made, path))
    if json_path is not None:
        write_file(json_path, lambda path: write_text(path, json.dumps(_document(made, found), indent=1) + "\n"))
    return 0


def _print(plan: Plan, found: list[Found], name: str) -> None:
    from poolalloc.cli.tables import Table, say, stdout_console

    console = stdout_console()
    table = Table(
        f"{name}: requests larger than {format_size(plan.above)}",
        ["device", "stream"],
        ["requests", "planned", "a step", "steps", "a cycle", "most alive", "height", "height / most alive"],
        silent={"device": ("0",), "stream": ("default",)},
    )
    for one in found:
        if one.part is None or one.cycle is None:
            continue
        table.add(
            str(one.device),
            _stream(one),
            f"{one.requests:,}",
            f"{one.part.planned:,}",
            f"{one.cycle.period:,}",
            f"{one.cycle.repeats:,}",
            f"{one.cycle.length:,}",
            format_size(one.load),
            format_size(one.part.height),
            f"{one.part.height / one.load:.5f}" if one.load else "-",
        )
    table.print(console)
    for line in _not_planned(found):
        say(console, line)


def _not_planned(found: list[Found]) -> list[str]:
    lines = []
    for one in found:
        where = f"device {one.device}, {_stream(one)} stream"
        if one.problem:
            lines.append(f"{where}: not planned: {one.problem}")
        if one.smaller:
            lines.append(f"{where}: {one.smaller:,} smaller requests are not planned: they come from slabs")
        if one.outliving:
            lines.append(f"{where}: {one.outliving:,} requests are not planned: their blocks outlive the cycle")
        if one.initial:
            lines.append(f"{where}: {one.initial:,} blocks are not planned: they were there when the recording began")
    return lines


def _stream(found: Found) -> str:
    return "default" if found.stream == 0 else f"other {found.stream}"


def _document(plan: Plan, found: list[Found]) -> dict[str, Any]:
    """Bytes, and numbers of requests."""
    return {
        "schema": 1,
        "above": plan.above,
        "streams": [
            {
                "device": one.device,
                "stream": one.stream,
                "requests": one.requests,
                "smaller": one.smaller,
                "initial": one.initial,
                "outliving": one.outliving,
                "planned": one.part.planned if one.part else 0,
                "beginning": one.part.first if one.part else None,
                "step": one.cycle.period if one.cycle else None,
                "steps": one.cycle.repeats if one.cycle else None,
                "cycle": one.cycle.length if one.cycle else None,
                "most_alive_bytes": one.load if one.part else None,
                "height_bytes": one.part.height if one.part else None,
                "method": one.method or None,
                "problem": one.problem or None,
            }
            for one in found
        ],
    }
