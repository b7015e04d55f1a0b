"""What servers of metrics say now, for `poolalloc top`: whatever answers, within a bounded time and in bounded memory.

A server may be anything: slow, endless, or no server of metrics at all. Each is asked in a thread of its own, so that
none holds up the others; the answer is bounded, and what it says is checked before it is shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_SECONDS = 5.0
"""From the question to the last byte of the answer, and all that is made of it."""
MOST_BYTES = 4 << 20
"""Of an answer."""
_MOST_DEVICES = 1024
_MOST = 2.0**63


@dataclass(frozen=True)
class Look:
    """What a process said of its devices at one moment. Bytes and counts."""

    url: str
    seconds: float
    """Of a clock that only tells how much later another look was."""
    devices: dict[tuple[str, int], dict[str, int]]
    """By process, where the server speaks for several (else ""), and device: the metrics without `poolalloc_` and the
    ending of their unit. `total` is the device's memory."""
    driver_seconds: dict[str, float]
    """By process: the modelled time of the driver's work, by the default price list."""
    problem: str = ""
    """Why nothing is known; then there are no devices."""
    failed: bool = False
    """Whether the problem is the server's: it says nothing, or nothing that makes sense."""
    about: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "url": self.url,
            **self.about,
            "driver_modelled_seconds": sum(self.driver_seconds.values()),
            "devices": [
                {**({"process": int(process)} if process else {}), "device": device, **values}
                for (process, device), values in sorted(self.devices.items())
            ],
        }


class Scraper:
    """Looks at the same servers again and again."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._asking: dict[str, threading.Thread] = {}

    def look(self) -> list[Look]:
        """Return what each server says now, in their order. Takes TIMEOUT_SECONDS at most."""
        found: dict[str, Look] = {}
        for url in dict.fromkeys(self._urls):
            before = self._asking.get(url)
            if before is None or not before.is_alive():  # one that never ends is not asked again
                self._asking[url] = thread = threading.Thread(target=_answer, args=(url, found), daemon=True)
                thread.start()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        for thread in self._asking.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        late = f"no answer within {TIMEOUT_SECONDS:g} seconds"
        said = dict(found)
        return [said.get(url) or _failed(url, f"no metrics at {url}: {late}") for url in self._urls]


def _answer(url: str, found: dict[str, Look]) -> None:
    try:
        text = _read(url, time.monotonic() + TIMEOUT_SECONDS)
    except OSError as error:
        found[url] = _failed(url, f"no metrics at {url}: {error}")
        return
    try:
        found[url] = parse(url, text)
    except (ValueError, KeyError, AttributeError, IndexError, TypeError) as error:  # whatever the parser stumbles over
        found[url] = _failed(url, f"{url} serves no metrics: {error}")


def _failed(url: str, problem: str) -> Look:
    return Look(url, time.monotonic(), {}, {}, problem[:500], failed=True)


def _read(url: str, deadline: float) -> str:
    """Return the answer.

    Raises:
        OSError: there is none; the text says why.
    """
    import http.client
    import urllib.error
    import urllib.request

    parts, size = [], 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            while part := answer.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if size > MOST_BYTES:
                    raise OSError(f"the answer is longer than {MOST_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise OSError(f"no answer within {TIMEOUT_SECONDS:g} seconds")
    except urllib.error.URLError as error:
        raise OSError(getattr(error.reason, "strerror", None) or error.reason) from None
    except (ValueError, http.client.HTTPException) as error:
        raise OSError(str(error)) from None
    return b"".join(parts).decode("utf-8", "replace")


def parse(url: str, text: str) -> Look:
    """Return what the text of an answer says.

    Raises:
        ValueError: something is no number or device of poolalloc's.
    """
    from prometheus_client.parser import text_string_to_metric_families

    devices: dict[tuple[str, int], dict[str, int]] = {}
    about: dict[str, str] = {}
    driver: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("poolalloc_")
            if name == sample.name or name.endswith("_created"):
                continue
            if name == "info":
                about = dict(sample.labels)
                continue
            value = _number(sample.name, sample.value)
            process = _process(sample.labels.get("process", ""))
            if name == "driver_modelled_seconds_total":
                driver[process] = value
            elif not name.startswith("driver_"):  # those are of no device
                devices.setdefault((process, _device(sample.labels.get("device"))), {})[key_of(name)] = int(value)
    nothing = "" if devices else f"poolalloc serves no device at {url} yet"
    return Look(url, time.monotonic(), devices, driver, nothing, about=about)


def key_of(metric: str) -> str:
    """Return the name of a metric without its unit."""
    return "total" if metric == "device_bytes" else metric.removesuffix("_total").removesuffix("_bytes")


def _number(name: str, value: float) -> float:
    if not 0 <= value < _MOST:  # nor NaN
        raise ValueError(f"{name} is {value}")
    return value


def _process(label: str) -> str:
    if label and not (label.isascii() and label.isdigit() and len(label) < 20):
        raise ValueError(f"there is no process {label}")
    return label


def _device(label: str | None) -> int:
    if label is None or not label.isascii() or not label.isdigit() or len(label) > 4 or int(label) >= _MOST_DEVICES:
        raise ValueError(f"there is no device {label}")
    return int(label)
