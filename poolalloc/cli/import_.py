"""`poolalloc import`: makes a trace of a PyTorch memory snapshot or an RMM log, and accounts for every entry."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poolalloc._internal.text import printable
from poolalloc.cli.common import Json, count_of, fail, print_json, require_writable
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from poolalloc._internal.trace.format import Trace
    from poolalloc.analysis.trace.import_report import ImportReport


_ZIP = b"PK\x03\x04"
_NOT_ZIP = "it is a trace already, or another archive; import takes PyTorch's snapshots and RMM's logs"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("import")(import_)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="A PyTorch memory snapshot (.pickle) or an RMM log (.csv); either may be gzipped (.gz).",
            metavar="SOURCE",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The trace to write. Default: SOURCE with the ending .npz.", metavar="FILE"
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Make a trace of another program's recording, and say what was found, inferred and missing.

    Reads PyTorch's memory snapshots (torch.cuda.memory._dump_snapshot) of every version since 2.1, without running
    anything that is in them, and logs of RMM's logging adaptor.

    Example: poolalloc import snapshot.pickle -o run.npz
    """
    from poolalloc.analysis.trace import TraceError, write
    from poolalloc.cli.progress import working

    try:
        data = source.read_bytes()
    except OSError as error:
        fail(f"{source}: {error.strerror}")
    if data.startswith(_ZIP):
        fail(f"{source}: {_NOT_ZIP}")
    plain = source.with_suffix("") if source.suffix == ".gz" else source
    target = plain.with_suffix(".npz") if output is None else output
    require_writable({"--output": target}, inputs=[source])
    try:
        with working(f"reading {source.name}"):
            trace, report = read_any(data, source.name)
        with working(f"writing {target.name}"):
            write(trace, target)
    except TraceError as error:
        fail(f"{source}: {error}")
    except OSError as error:
        fail(f"{target}: {error.strerror}")
    if json:
        print_json({**report.to_json(), "trace": str(target), "events": len(trace)})
    else:
        print_report(report, trace)
        print(f"wrote {target}")
    return 0


def read_any(data: bytes, name: str) -> tuple[Trace, ImportReport]:
    """Return the trace in a file of any kind that can be imported.

    Raises:
        TraceError: it is of no such kind.
    """
    from poolalloc._internal.trace.format import TraceError
    from poolalloc.analysis.trace import rmm_csv, torch_snapshot

    if not data:
        raise TraceError("it is empty")
    if data.startswith(b"\x1f\x8b"):
        data = _unzipped(data)
    if data.startswith(_ZIP):
        raise TraceError(_NOT_ZIP)
    first_line = data[:1000].split(b"\n", 1)[0]
    if first_line.count(b",") >= 2 and all(32 <= byte < 127 or byte in b"\r\xef\xbb\xbf" for byte in first_line):
        return rmm_csv.import_log(data, name)
    return torch_snapshot.import_snapshot(data, name)


def _unzipped(data: bytes) -> bytes:
    """What a gzipped file holds. A few bytes can stand for terabytes: it may hold what real recordings come to."""
    from poolalloc._internal.trace.format import TraceError

    most = (1 << 28) + 100 * len(data)
    try:
        with gzip.open(io.BytesIO(data)) as file:
            whole = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"it is no gzip file, or it was cut off: {error}") from None
    if len(whole) > most:
        raise TraceError("it is damaged: it unpacks to far more than its size explains")
    if not whole:
        raise TraceError("it is empty")
    return whole


def print_report(report: ImportReport, trace: Trace) -> None:
    """Print the account as tables."""
    from poolalloc.cli.tables import Table, say, stdout_console

    console = stdout_console()
    table = Table(f"{report.kind} {report.source}", ["", "what"], ["count"])
    sections = (
        ("found", report.found),
        ("inferred", report.inferred),
        ("written", report.written),
        ("merged", report.merged),
        ("left out", report.left_out),
        ("assumed", report.assumed),
    )
    for name, counter in sections:
        for number, (what, count) in enumerate(sorted(counter.items(), key=lambda item: -item[1])):
            table.add(name if number == 0 else "", printable(what), f"{count:,}")
        if not counter and name in ("inferred", "left out"):
            table.add(name, "nothing", "0")
        table.end_section()
    for number, what in enumerate(report.missing):
        table.add("missing" if number == 0 else "", printable(what), "")
    table.print(console)
    left, right = report.balance()
    found, inferred = report.found.total(), report.inferred.total()
    console.print(
        f"{found:,} found + {inferred:,} inferred = {report.written.total():,} written + {report.merged.total():,} "
        f"merged + {report.left_out.total():,} left out" + ("" if left == right else "  (THIS DOES NOT ADD UP)"),
        highlight=False,
    )
    for row in report.devices:
        known = _device_figures(row)
        if known:
            line = f"device {row['device']}, says the recorded allocator: {known}"
            say(console, line)
    streams, pools = len(set(trace.events["stream"].tolist())), len(set(trace.events["pool"].tolist()))
    console.print(
        f"{count_of(len(trace), 'event')}, {trace.initial_events:,} of them the initial state; "
        f"{count_of(len(trace.used_devices()), 'device')}, {count_of(streams, 'stream')}, {count_of(pools, 'pool')}, "
        f"{count_of(len(trace.stacks) - 1, 'stack')}",
        highlight=False,
        soft_wrap=True,
    )


def _device_figures(row: dict[str, Any]) -> str:
    words = (
        ("reserved_at_start", "reserved at the start"),
        ("reserved_peak", "at the peak"),
        ("reserved_at_end", "at the end"),
        ("allocated_at_end", "allocated at the end"),
    )
    return ", ".join(f"{format_size(row[key])} {word}" for key, word in words if row.get(key) is not None)
