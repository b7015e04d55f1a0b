"""`poolalloc plan`: places the blocks of a recorded program whose steps repeat, for the next run to be served from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poolalloc.cli.common import NO, Json, fail, print_json, require_writable, size_option, time_option, write_file
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from poolalloc.analysis.plan import Plan, StreamFindings, Worth

_MOST = 0.8  # of the requests: a plan that covers less is worth a word


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("plan")(plan)


def plan(
    trace: Annotated[Path, typer.Argument(help="A trace, such as poolalloc run --record writes.", metavar="TRACE")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The plan's file.", metavar="PLAN.npz")],
    time: Annotated[str, typer.Option(help="How long to look for a lower placement.", metavar="TIME")] = "10s",
    above: Annotated[
        str | None, typer.Option(help="Plan requests larger than this; 128 KiB if not given.", metavar="SIZE")
    ] = None,
    json: Json = False,
) -> int:
    """Plan where the blocks of a program go whose steps ask for the same sizes again and again.

    Record it from its start over at least two whole steps, three show more. The next run is served from the plan by
    poolalloc run --plan, or install(plan=...); what it does otherwise is served as without one. A plan that would cost
    memory, or only driver calls, when the recording is replayed is not written (exit code 1).

    Example: poolalloc plan run.npz -o plan.npz --time 60s
    """
    from poolalloc.analysis import plan as planning
    from poolalloc.analysis.replay import Replayer
    from poolalloc.analysis.trace import TraceError, read
    from poolalloc.cli.progress import working

    require_writable({"--output": output}, inputs=[trace])
    seconds = time_option("--time", time)
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
            worth = planning.judge(Replayer(recording), made)
    except planning.PlanError as error:
        fail(f"{trace.name}: {error}")
    if json:
        print_json(_document(made, found, worth))
    else:
        _print(made, found, worth, trace.name)
    if not worth.pays:
        fail(f"{trace.name}: no plan is written, since it would not pay: {worth}", NO)
    write_file(output, lambda path: planning.write(made, path), silent=json)
    return 0


def _print(plan: Plan, found: list[StreamFindings], worth: Worth, name: str) -> None:
    from poolalloc.cli.tables import Table, say, stdout_console

    console = stdout_console()
    table = Table(
        f"{name}: requests larger than {format_size(plan.above)}",
        ["device", "stream"],
        [
            "requests",
            "covered",
            "of bytes",
            "planned",
            "a step",
            "steps",
            "a cycle",
            "most alive",
            "height",
            "height / most alive",
        ],
        silent={"device": ("0",), "stream": ("default",)},
    )
    for one in found:
        if one.part is None or one.cycle is None:
            continue
        table.add(
            str(one.device),
            _stream(one),
            f"{one.requests:,}",
            f"{one.covered / one.requests:.0%}",
            f"{one.covered_bytes / one.bytes:.0%}",
            f"{one.part.planned:,}",
            f"{one.cycle.period:,}",
            f"{one.cycle.repeats:,}",
            f"{one.cycle.length:,}",
            format_size(one.load),
            format_size(one.part.height),
            f"{one.part.height / one.load:.5f}" if one.load else "-",
        )
    table.print(console)
    say(console, f"replayed: {worth}")
    for line in _not_planned(found):
        say(console, line)


def _not_planned(found: list[StreamFindings]) -> list[str]:
    lines = []
    for one in found:
        where = f"device {one.device}, {_stream(one)} stream"
        if one.problem:
            lines.append(f"{where}: not planned: {one.problem}")
        if one.part is not None and one.covered < _MOST * one.requests:
            lines.append(
                f"{where}: only {one.covered / one.requests:.0%} of the requests are covered: the rest is in no step "
                "that repeats. Record more steps, from the program's start"
            )
        if one.smaller:
            lines.append(f"{where}: {one.smaller:,} smaller requests are not planned: they come from slabs")
        if one.outliving:
            lines.append(f"{where}: {one.outliving:,} requests are not planned: their blocks outlive the cycle")
        if one.initial:
            lines.append(f"{where}: {one.initial:,} blocks are not planned: they were there when the recording began")
    return lines


def _stream(found: StreamFindings) -> str:
    return "default" if found.stream == 0 else f"other {found.stream}"


def _document(plan: Plan, found: list[StreamFindings], worth: Worth) -> dict[str, Any]:
    """Bytes, and numbers of requests."""
    return {
        "schema": 1,
        "above": plan.above,
        "replayed": {**vars(worth), "cost": worth.cost},
        "streams": [
            {
                "device": one.device,
                "stream": one.stream,
                "requests": one.requests,
                "bytes": one.bytes,
                "covered": one.covered,
                "covered_bytes": one.covered_bytes,
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
