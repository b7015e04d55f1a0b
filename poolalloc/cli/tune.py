"""`poolalloc tune`: options that suit recorded programs, found by replaying them with no GPU."""

from __future__ import annotations

import math
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poolalloc.cli.common import (
    Json,
    config_help,
    fail,
    print_json,
    require_writable,
    size_option,
    time_option,
    write_file,
)
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from poolalloc.analysis.tune import Tuned


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("tune")(tune)


def tune(
    traces: Annotated[
        list[Path], typer.Argument(help="Traces, from poolalloc run --record or poolalloc import.", metavar="TRACE")
    ],
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Write the profile to this TOML file.", metavar="FILE")
    ],
    objective: Annotated[
        str,
        typer.Option(
            help="memory: least reserved; time: least of the driver's time, modelled; balanced: both.",
            metavar="memory|time|balanced",
        ),
    ] = "memory",
    trials: Annotated[
        int | None,
        typer.Option(
            help="How many configurations to try. Default: 40, or with --time as many as it allows.", min=1, metavar="N"
        ),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Stop after this long, such as 60s or 5min.", metavar="TIME")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of each device, such as 40GiB. Default: as for replay.", metavar="SIZE")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help=config_help("What tuning begins with. "), metavar="PROFILE|FILE")
    ] = None,
    conf: Annotated[str | None, typer.Option(help="Options on top of it.", metavar="KEY:VALUE,...")] = None,
    most_overhead: Annotated[
        float | None,
        typer.Option(help="Choose nothing whose peak reserved / peak requested is greater.", min=1.0, metavar="RATIO"),
    ] = None,
    exact_bins: Annotated[
        bool, typer.Option("--exact-bins", help="Propose exact bins, too; with --objective time or balanced.")
    ] = False,
    costs: Annotated[
        str | None,
        typer.Option(
            help="Price list for the driver's time: a name or a file .json. Default: default.", metavar="NAME"
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Share the search with other workers: a journal file, or a database URL.", metavar="WHERE"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads. Default: one for each processor.", min=1, metavar="N")
    ] = None,
    json: Json = False,
) -> None:
    """Find options under which recorded programs need least; install("profile.toml") uses them.

    Three quarters of each trace are tuned on, the rest is held out and reported. Ctrl-C keeps the best so far. Several
    machines search together with the same --storage and the same traces.

    Example: poolalloc tune monday.npz -o service.toml --objective time --most-overhead 1.05

    Example: poolalloc tune monday.npz tuesday.npz -o service.toml --time 60s
    """
    from poolalloc._internal.atomic_files import write_text
    from poolalloc.analysis import costs as driver_costs
    from poolalloc.analysis.replay import require_memory
    from poolalloc.analysis.tune import OBJECTIVES, TRIALS
    from poolalloc.analysis.tune import tune as search
    from poolalloc.cli.progress import working
    from poolalloc.cli.replay import load_config, read_trace
    from poolalloc.errors import PoolallocError

    chosen = next((known for known in OBJECTIVES if known == objective), None)
    if chosen is None:
        fail(f"--objective: {objective!r} is not one of {', '.join(OBJECTIVES)}")
    require_writable({"--output": output}, inputs=traces)
    limit = None if time is None else time_option("--time", time)
    memory_bytes = None if memory is None else size_option("--memory", memory)
    try:
        base = load_config(config, conf)
        memory_bytes = None if memory_bytes is None else require_memory(memory_bytes)
        recordings = [read_trace(path) for path in traces]
        wanted = trials if trials is not None else TRIALS if limit is None else math.inf
        began = monotonic()

        def share(done: int) -> float:
            """How much of what was asked for is done: trials or seconds, whichever ends it."""
            return max(done / wanted, 0.0 if limit is None else (monotonic() - began) / limit)

        with working("tuning", 100) as bar:
            found = search(
                recordings,
                objective=chosen,
                trials=trials,
                seconds=limit,
                base=base,
                memory=memory_bytes,
                most_overhead=math.inf if most_overhead is None else most_overhead,
                exact_bins=exact_bins,
                prices=driver_costs.find(costs),
                storage=storage,
                workers=workers,
                watch=lambda done, best: bar.at(int(100 * min(share(done), 1.0)), 100),
            )
    except PoolallocError as error:
        fail(str(error))
    if json:
        print_json(found.to_json())
    else:
        print_found(found)
    write_file(output, lambda path: write_text(path, found.to_toml()), silent=json)


def print_found(found: Tuned) -> None:
    """Print what the options gain on both parts."""
    from poolalloc.cli.tables import Table, say, stdout_console

    table = Table(
        f"{found.trials} configurations tried, objective {found.objective}",
        [""],
        ["overhead before", "after", "reserved before", "after", "driver ms a step before", "after"],
    )
    for name, before, after in (
        ("tuned on", found.before.tuned_on, found.after.tuned_on),
        ("held out", found.before.held_out, found.after.held_out),
    ):
        table.add(
            name,
            *(f"{score.overhead:.4f}" for score in (before, after)),
            *(format_size(score.reserved) for score in (before, after)),
            *(f"{score.milliseconds:,.3f}" for score in (before, after)),
        )
    console = stdout_console()
    table.print(console)
    options = found.config.to_conf() or "the defaults: nothing was better"
    say(console, f"options: {options}")
    gains: dict[str, Any] = found.provenance
    say(
        console,
        f"on what was held out: {gains['gains_held_out_milliseconds_a_step']:,.3f} ms a step of the driver's time and "
        f"{_signed(gains['gains_held_out_bytes'])} gained ({gains['prices'].partition(': ')[2]})",
    )
    objective = found.objective
    if found.after.held_out.value(objective) > found.before.held_out.value(objective):
        console.print(
            "The held-out part is worse off: record more, or something more like what will run.", highlight=False
        )


def _signed(count: int) -> str:
    return f"-{format_size(-count)}" if count < 0 else format_size(count)
