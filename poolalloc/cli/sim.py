"""`poolalloc sim`: runs any program on a simulated GPU. The work is in poolalloc.sim."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from poolalloc import sim as simulator
from poolalloc.analysis import costs
from poolalloc.cli.common import fail, print_error, require_writable, size_option, time_option


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    # What follows the program's name is the program's, whatever it looks like.
    app.command("sim", context_settings={"allow_interspersed_args": False})(sim)


def sim(
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.", metavar="PROGRAM")],
    *,
    gpu: Annotated[
        str,
        typer.Option(help="The card: h100, a100, l4, rtx4090, ...; an unknown name shows the nearest.", metavar="NAME"),
    ] = simulator.DEFAULT_GPU,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory of each device, such as 80GiB; the card's own if not given.", metavar="SIZE"),
    ] = None,
    devices: Annotated[
        int, typer.Option(help="Number of devices; CUDA_VISIBLE_DEVICES chooses among them.", metavar="N")
    ] = 1,
    lag: Annotated[
        int, typer.Option(help="Events complete only after N further launches, or at a synchronize.", metavar="N")
    ] = 0,
    virtual_memory: Annotated[
        bool,
        typer.Option(
            "--virtual-memory/--no-virtual-memory",
            help="Whether the cards have virtual memory management (cuMemCreate, cuMemMap, ...).",
        ),
    ] = True,
    values: Annotated[
        bool,
        typer.Option(
            "--values/--no-values",
            help="Compute small integers and booleans where they are known: loops and masks depend on them.",
        ),
    ] = True,
    vmm_fault: Annotated[
        str | None,
        typer.Option(
            help="What of it fails although the cards announce it: access to memory that network cards can reach "
            "(rdma, as on WSL2), or to any mapped memory (access, as on some virtual GPUs).",
            metavar="rdma|access",
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Which devices reach each other's memory, such as 0-1,1-2; all of them if not given, or none.",
            metavar="PAIRS",
        ),
    ] = None,
    shared: Annotated[
        str | None,
        typer.Option(
            help="Share the cards' memory with every other program of this name; without it the cards are the "
            "process's own.",
            metavar="NAME",
        ),
    ] = None,
    driver_costs: Annotated[
        str | None,
        typer.Option(
            help="Let the driver's work take its price, by this list: default, another name, or a file .json.",
            metavar="NAME|FILE",
        ),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="End the program after so long (exit code 124).", metavar="TIME")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write peaks and CUDA calls to this file at exit, as JSON.", metavar="FILE"
        ),
    ] = None,
) -> int:
    """Run a program on a simulated GPU: a CUDA build of torch, unmodified, on a machine without one.

    Every allocation is the real one. Of what a program computes, only small integers and booleans are: flags, counts,
    masks, tokens. All else reads as zeros. A program that waits for such a value waits for ever; it is told so.

    Example: poolalloc sim --gpu a100 --memory 40GiB -o report.json -- python train.py --epochs 1
    """
    size = None if memory is None else size_option("--memory", memory)
    seconds = None if timeout is None else time_option("--timeout", timeout)
    try:
        environment = simulator.sim_environment(
            gpu,
            size,
            devices=devices,
            lag=lag,
            virtual_memory=virtual_memory,
            vmm_fault=vmm_fault,
            peers=peers,
            shared=shared,
            prices=None if driver_costs is None else costs.find(driver_costs),
            report=output,
        )
        if not simulator.sees_devices(os.environ, devices):
            print_error(
                f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} names none of the simulated devices (0 to"
                f" {devices - 1}), so the program does not get it"
            )
        if output is not None:
            _make_way_for(output)
        simulator.prepare(command, environment)
        if values:
            simulator.add_values(command, environment, print_error)
        if seconds is None:
            simulator.execute(command, environment)
        code, _, _ = simulator.supervise(command, environment, seconds)
    except (simulator.SimulationError, costs.CostError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{command[0]} cannot be started: {error.strerror}")
    if code is None:
        print_error(
            f"the program was ended after {seconds:g} s, its --timeout. What a simulated GPU does not compute reads as"
            " zero; it may have waited for such a value (a loss that falls, a token that a model chooses)"
        )
        return simulator.TIMED_OUT
    return code


def _make_way_for(report: Path) -> None:
    """Remove a report of an earlier run, which a program that ends without writing one would pass off as its own."""
    require_writable({"--output": report})
    if report.is_file():
        report.unlink()
