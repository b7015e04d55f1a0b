"""`poolalloc top`: what processes that serve their metrics hold, refreshed as they run."""

from __future__ import annotations

import json as json_format
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from poolalloc.cli.common import fail
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from rich.console import Console

TIMEOUT_SECONDS = 5
_BYTES = ("requested", "live", "pending", "kept", "idle", "reserved", "limit")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("top")(top)


def top(
    target: Annotated[
        list[str] | None,
        typer.Argument(help="Where metrics are: a port, HOST:PORT or a URL. Default: port 9400.", metavar="TARGET..."),
    ] = None,
    *,
    every: Annotated[float, typer.Option(help="Seconds from one look to the next.", min=0.1)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and print that.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Look once, and print that as JSON.")] = False,
) -> int:
    """Show what processes hold, device by device, while they run; Ctrl-C ends it.

    A process shows what it holds once it has called poolalloc.metrics.serve(9400), or was started by poolalloc run
    --metrics 9400. Rates are of the time since the last look.

    Example: poolalloc top

    Example: poolalloc top 9400 9401 gpu-box:9400 --every 5
    """
    from poolalloc.cli.tables import stdout_console
    from poolalloc.errors import PoolallocError
    from poolalloc.metrics import PORT, require_client

    try:
        require_client()
    except PoolallocError as error:
        fail(str(error))
    targets = [url_of(one) for one in target or [str(PORT)]]
    try:
        looks = [look(one) for one in targets]
    except OSError as error:
        fail(
            f"{error}; processes show what they hold after poolalloc.metrics.serve(), or under poolalloc run --metrics"
        )
    if json:
        print(json_format.dumps([one.to_json() for one in looks], indent=1))
        return 0
    if once or not sys.stdout.isatty():
        _print(stdout_console(), looks, [None] * len(looks))
        return 0
    try:
        _watch(targets, looks, every)
    except KeyboardInterrupt:
        return 0


def url_of(target: str) -> str:
    """Return the URL that a target stands for."""
    if target.isdigit():
        return f"http://localhost:{target}/metrics"
    url = target if "://" in target else f"http://{target}"
    if not url.startswith(("http://", "https://")):
        fail(f"{target}: metrics are read over http and https alone")
    return url if url.count("/") > 2 else f"{url}/metrics"


@dataclass(frozen=True)
class Look:
    """What a process said of its devices at one moment. Bytes and counts."""

    url: str
    seconds: float
    """Of a clock that only tells how much later another look was."""
    devices: dict[int, dict[str, int]]
    """By device, the metrics without `poolalloc_` and the ending of their unit."""
    driver_calls: int
    problem: str = ""
    """Why nothing is known; then there are no devices."""
    about: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "url": self.url,
            **self.about,
            "driver_calls": self.driver_calls,
            "devices": [{"device": device, **values} for device, values in sorted(self.devices.items())],
        }


def look(url: str) -> Look:
    """Return what a process says now. Raises OSError, with the URL in its text, where it says nothing."""
    import http.client
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            text = answer.read().decode("utf-8", "replace")
    except urllib.error.URLError as error:
        raise OSError(f"no metrics at {url}: {getattr(error.reason, 'strerror', None) or error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise OSError(f"no metrics at {url}: {error}") from None
    try:
        return _parse(url, text)
    except (ValueError, KeyError) as error:
        raise OSError(f"{url} serves no metrics: {error}") from None


def _parse(url: str, text: str) -> Look:
    from prometheus_client.parser import text_string_to_metric_families

    devices: dict[int, dict[str, int]] = {}
    about: dict[str, str] = {}
    calls = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("poolalloc_")
            if name == sample.name or name.endswith("_created"):
                continue
            if name == "info":
                about = dict(sample.labels)
            elif name == "driver_calls_total":
                calls += int(sample.value)
            else:
                name = name.removesuffix("_total").removesuffix("_bytes")
                devices.setdefault(int(sample.labels["device"]), {})[name] = int(sample.value)
    return Look(
        url, time.monotonic(), devices, calls, "" if devices else f"poolalloc serves no device at {url} yet", about
    )


def _watch(targets: list[str], looks: list[Look], every: float) -> NoReturn:
    from rich.live import Live
    from rich.text import Text

    from poolalloc.cli.tables import stdout_console

    def drawn(before: list[Look | None]) -> Text:
        console = stdout_console()
        with console.capture() as captured:
            _print(console, looks, before)
        return Text.from_ansi(captured.get())

    before: list[Look | None] = [None] * len(looks)
    with Live(drawn(before), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(every)
            before, looks = list(looks), [_look_again(target) for target in targets]
            live.update(drawn(before), refresh=True)


def _look_again(url: str) -> Look:
    try:
        return look(url)
    except OSError as error:
        return Look(url, time.monotonic(), {}, 0, str(error))


def _print(console: Console, looks: list[Look], before: list[Look | None]) -> None:
    """Print one row for each device, with rates where a look before this one is known; then who says nothing."""
    from poolalloc.cli.tables import Table, say

    headings = [*_BYTES, "peak", "overhead", "allocations/s", "driver calls/s", "out of memory"]
    nothing = {"pending": ("0 B",), "kept": ("0 B",), "out of memory": ("0",)}
    silent = {**nothing, "allocations/s": ("-",), "driver calls/s": ("-",)}
    table = Table("", ["process", "device"], headings, silent)
    for now, last in zip(looks, before, strict=True):
        name = now.url.removeprefix("http://").removesuffix("/metrics")
        for device, values in sorted(now.devices.items()):
            past = last.devices.get(device) if last is not None else None
            seconds = now.seconds - last.seconds if last is not None else 0.0
            peak = values["reserved_peak"]
            table.add(
                name,
                str(device),
                *(format_size(values[each]) for each in _BYTES),
                format_size(peak),
                f"{peak / values['requested_peak']:.4f}" if values["requested_peak"] else "-",
                _rate(values["allocations"], None if past is None else past["allocations"], seconds),
                _rate(now.driver_calls, None if past is None or last is None else last.driver_calls, seconds),
                f"{values['out_of_memory']:,}",
            )
        table.end_section()
    if any(now.devices for now in looks):
        table.print(console)
    for now in looks:
        if now.problem:
            say(console, now.problem)


def _rate(now: int, before: int | None, seconds: float) -> str:
    """How many more a second; nothing without a look before, or if the process is another one now."""
    return "-" if before is None or now < before or seconds <= 0 else f"{(now - before) / seconds:,.0f}"
