"""`poolalloc top`: what processes that serve their metrics hold, refreshed as they run."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, NoReturn
from urllib.parse import urlsplit

import typer

from poolalloc.cli.common import NO, Json, fail, print_json, time_option
from poolalloc.cli.scrape import Look, Scraper
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from rich.console import Console

_BYTES = ("requested", "live", "pending", "kept", "idle", "reserved", "asleep", "limit")
_LEAST_FIRST = (
    *("driver ms/s", "allocations/s", "kept", "live", "pending", "limit", "peak", "asleep", "out of memory", "idle"),
)
"""Columns in the order in which they go where a terminal is too narrow for all."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("top")(top)


def top(
    target: Annotated[
        list[str] | None,
        typer.Argument(help="Where metrics are: a port, HOST:PORT or a URL. Default: port 9400.", metavar="TARGET..."),
    ] = None,
    *,
    every: Annotated[str, typer.Option(help="From one look to the next.", metavar="TIME")] = "2s",
    once: Annotated[bool, typer.Option("--once", help="Look once, and print that.")] = False,
    json: Json = False,
) -> int:
    """Show what processes hold, device by device, while they run; Ctrl-C ends it.

    A process shows what it holds once it has called poolalloc.metrics.serve(9400), or was started by poolalloc run
    --metrics 9400. Rates are of the time since the last look.

    Example: poolalloc top

    Example: poolalloc top 9400 9401 gpu-box:9400 --every 5s
    """
    from poolalloc.cli.tables import stdout_console
    from poolalloc.errors import PoolallocError
    from poolalloc.metrics import PORT, require_client

    pause = time_option("--every", every, least=0.1)
    try:
        require_client()
    except PoolallocError as error:
        fail(str(error))
    scraper = Scraper([url_of(one) for one in target or [str(PORT)]])
    try:
        looks = scraper.look()
        for look in looks:
            if look.failed:
                serving = "poolalloc.metrics.serve(), or under poolalloc run --metrics"
                fail(f"{look.problem}; processes show what they hold after {serving}", NO)
        if json:
            print_json([one.to_json() for one in looks])
        elif once or not sys.stdout.isatty():
            _print(stdout_console(), looks, [None] * len(looks))
        else:
            _watch(scraper, looks, pause)
    except KeyboardInterrupt:
        pass
    return 0


def url_of(target: str) -> str:
    """Return the URL that a target stands for."""
    server = f"localhost:{target}" if target.isdigit() else target
    url = server if "://" in server else f"http://{server}"
    if not url.startswith(("http://", "https://")):
        fail(f"{target}: metrics are read over http and https alone")
    try:
        port, host = urlsplit(url).port, urlsplit(url).hostname
    except ValueError:
        port, host = 0, None
    if not host or port == 0:
        fail(f"{target}: it names no server; write a port from 1 to 65535, HOST:PORT or a URL")
    return url if url.count("/") > 2 else f"{url}/metrics"


def _watch(scraper: Scraper, looks: list[Look], every: float) -> NoReturn:
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
            before, looks = list(looks), scraper.look()
            live.update(drawn(before), refresh=True)


def _print(console: Console, looks: list[Look], before: list[Look | None]) -> None:
    """Print one row for each device, with rates where a look before this one is known; then who says nothing."""
    from poolalloc.cli.tables import Table, say

    headings = [*_BYTES, "peak", "overhead", "allocations/s", "driver ms/s", "out of memory"]
    silent: dict[str, tuple[str, ...]] = dict.fromkeys(headings, ("-",))
    silent |= {"pending": ("0 B", "-"), "kept": ("0 B", "-"), "asleep": ("0 B", "-"), "out of memory": ("0", "-")}
    table = Table("", ["process", "device"], headings, silent, least_first=_LEAST_FIRST)
    for now, last in zip(looks, before, strict=True):
        name = now.url.removeprefix("http://").removesuffix("/metrics")
        for (process, device), values in sorted(now.devices.items()):
            past = last.devices.get((process, device)) if last is not None else None
            driver = last.driver_seconds.get(process) if last is not None and past is not None else None
            seconds = now.seconds - last.seconds if last is not None else 0.0
            # Another version of poolalloc may serve fewer metrics.
            peak, most = values.get("reserved_peak"), values.get("requested_peak")
            table.add(
                f"{name} {process}" if process else name,
                str(device),
                *(_size(values.get(each)) for each in _BYTES),
                _size(peak),
                f"{peak / most:.4f}" if peak is not None and most else "-",
                _rate(values.get("allocations"), None if past is None else past.get("allocations"), seconds),
                _share(now.driver_seconds.get(process), driver, seconds),
                f"{values['out_of_memory']:,}" if "out_of_memory" in values else "-",
            )
        table.end_section()
    if any(now.devices for now in looks):
        table.print(console)
    for now in looks:
        if now.problem:
            say(console, now.problem)


def _size(value: int | None) -> str:
    return "-" if value is None else format_size(value)


def _share(now: float | None, before: float | None, seconds: float) -> str:
    """How many milliseconds of each second; nothing without a look before, or if the process is another one now."""
    if now is None or before is None or now < before or seconds <= 0:
        return "-"
    return f"{(now - before) / seconds * 1e3:,.2f}"


def _rate(now: int | None, before: int | None, seconds: float) -> str:
    """How many more a second; nothing without a look before, or if the process is another one now."""
    if now is None or before is None or now < before or seconds <= 0:
        return "-"
    return f"{(now - before) / seconds:,.0f}"
