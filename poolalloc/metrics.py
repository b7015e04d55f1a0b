"""poolalloc's statistics for Prometheus, and what `poolalloc top` shows.

    poolalloc.install()
    poolalloc.metrics.serve(9400)      # http://localhost:9400/metrics

A program that serves metrics already adds poolalloc's to its own: poolalloc.metrics.register(). Needs prometheus-client
(pip install 'poolalloc[metrics]').

Nothing is counted for it that is not counted anyway: whoever asks for the metrics has the statistics read, once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolalloc._internal import price_lists, workers
from poolalloc._internal.installed import Installation, installation
from poolalloc._internal.version import __version__
from poolalloc.errors import UsageError
from poolalloc.memory import EVENTS, QUANTITIES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

__all__ = ["PORT", "Collector", "Server", "register", "serve"]

Devices = list[dict[str, Any]]
"""The statistics of each device that a process uses."""
PORT = 9400
"""Where metrics are served if nobody says otherwise."""

_MEANING = {
    "requested": "asked for by the program and not freed",
    "live": "in blocks of the program, with what rounding adds",
    "pending": "freed, waiting for another stream",
    "kept": "in blocks that exact bins keep",
    "resident": "in pages under at least one block",
    "idle": "in pages under no block",
    "reserved": "held on the device",
}


def require_client() -> None:
    """Raise UsageError where prometheus-client is not installed."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise UsageError("metrics need prometheus-client; install it with: pip install 'poolalloc[metrics]'") from None


class Collector:
    """Reads the statistics of every device in use, as often as it is asked.

    With a folder of workers (workers.py) those of the processes in it too, each metric with the label `process`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering it must not touch a device."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield poolalloc's metrics. None before install(), and in a child of fork()."""
        serving = installation()
        if serving is None:
            return
        own = workers.figures()
        if self._folder is None:
            if own:
                yield from _metrics([((), own)], [], serving)
            return
        found = {os.getpid(): own, **workers.ask(self._folder)}
        rows = [((str(process),), devices) for process, devices in sorted(found.items()) if devices]
        if rows:
            yield from _metrics(rows, ["process"], serving)


def _metrics(
    rows: Sequence[tuple[Sequence[str], Devices]], names: list[str], serving: Installation
) -> Iterator[Metric]:
    """The metrics of one or several processes: for each the values of the labels `names`, and its devices."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    devices = [([*labels, str(stats["device"])], stats) for labels, found in rows for stats in found]

    def gauge(name: str, text: str, *path: str) -> Metric:
        family = GaugeMetricFamily(f"poolalloc_{name}", text, labels=[*names, "device"])
        for labels, stats in devices:
            value: Any = stats
            for key in path:
                value = value[key]
            family.add_metric(labels, value)
        return family

    for name in QUANTITIES:
        for of, suffix, text in (("current", "", ""), ("peak", "_peak", "the most that was at one time ")):
            if (name, of) == ("idle", "peak"):
                continue  # idle is what reserved and resident leave: it has no history of its own
            yield gauge(f"{name}{suffix}_bytes", f"Bytes: {text}{_MEANING[name]}.", name, of)
    for name, key, text in (
        ("limit_bytes", "limit_bytes", "Bytes that poolalloc may hold on the device."),
        ("device_bytes", "total_bytes", "Bytes of memory that the device has."),
        ("idle_in_pools_bytes", "idle_in_pools", "Bytes: idle, but in pools of CUDA graphs, which alone may use them."),
        ("asleep_bytes", "asleep", "Bytes: given to the device by regions that are asleep."),
        (
            "asleep_host_bytes",
            "asleep_host",
            "Bytes of the host's memory with the contents of regions that are asleep.",
        ),
        ("asleep_file_bytes", "asleep_file", "Bytes of files with the contents of regions that are asleep."),
        ("metadata_bytes", "metadata_bytes", "Bytes of the host's memory that poolalloc itself needs."),
        ("blocks", "live_blocks", "Blocks that the program holds, and those that wait for a stream."),
    ):
        yield gauge(name, text, key)
    for name, text in EVENTS.items():
        about = f"{text[0].upper()}{text[1:]}."
        family = CounterMetricFamily(f"poolalloc_{name}", about, labels=[*names, "device"])
        for labels, stats in devices:
            family.add_metric(labels, stats[name])
        yield family
    about = "Calls of the driver by this process."
    calls = CounterMetricFamily("poolalloc_driver_calls", about, labels=[*names, "call"])
    for of_process, found in rows:
        for call, count in sorted(found[0]["driver_calls"].items()):
            calls.add_metric([*of_process, call], count)
    yield calls
    handles = CounterMetricFamily(
        "poolalloc_driver_handles",
        "Handles that the driver made, mapped, ... for this process.",
        labels=[*names, "work"],
    )
    pages = CounterMetricFamily(
        "poolalloc_driver_pages", "Pages of 2 MiB in the handles that it made, mapped, ...", labels=[*names, "work"]
    )
    prices = price_lists.find()
    about = "Seconds of the driver's work for this process, by a price list: a model, not measured."
    time = CounterMetricFamily("poolalloc_driver_modelled_seconds", about, labels=[*names, "prices"])
    for of_process, found in rows:
        work = found[0]["driver_work"]
        for kind, count in sorted(work.items()):
            family = pages if kind.endswith(price_lists.PAGES) else handles
            family.add_metric([*of_process, kind.removesuffix(price_lists.PAGES)], count)
        time.add_metric([*of_process, prices.name], prices.price(work).middle)
    yield handles
    yield pages
    yield time
    info = GaugeMetricFamily("poolalloc_info", "What serves this process.", labels=["version", "torch", "settings"])
    info.add_metric([__version__, serving.torch_version, serving.config.to_conf()], 1)
    yield info


def register(registry: CollectorRegistry | None = None, *, folder: Path | None = None) -> Collector:
    """Add poolalloc's metrics to a registry; None is prometheus-client's own.

    `folder` is where other processes show theirs (workers.py), if they do. May be called before poolalloc.install():
    until then there are none.

    Raises:
        UsageError: prometheus-client is not installed.
        ValueError: they are in this registry already.
    """
    require_client()
    import prometheus_client

    collector = Collector(folder)
    (prometheus_client.REGISTRY if registry is None else registry).register(collector)
    return collector


class Server:
    """Serves metrics until close(), or the end of the process."""

    def __init__(self, server: Any, address: str) -> None:
        self._server = server
        self.url = f"http://{address or 'localhost'}:{server.server_port}/metrics"
        """Where they are."""

    def close(self) -> None:
        """Serve them no longer."""
        self._server.shutdown()
        self._server.server_close()


def serve(port: int = PORT, address: str = "localhost", *, folder: Path | None = None) -> Server:
    """Serve poolalloc's metrics alone, over HTTP, from a thread of its own.

    Args:
        port: 0 is any that is free; Server.url tells it. Give each process of a machine its own.
        address: whose requests are taken: "localhost" takes this machine's, "0.0.0.0" everybody's.
        folder: where other processes show their statistics (workers.py), which are then served too.

    Raises:
        UsageError: prometheus-client is not installed, or the port cannot be had.
    """
    require_client()
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    register(registry, folder=folder)
    try:
        server, _ = prometheus_client.start_http_server(port, address, registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"metrics cannot be served at {address}:{port}: {reason}") from None
    return Server(server, address)
