"""Logs of RMM's logging adaptor (`Thread,Time,Action,Pointer,Size,Stream`) as traces.

One log is one memory resource, so one device. RMM's frees are ordered by streams: a freed block is free at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re

from poolalloc._internal.trace.format import MAX_BYTES, DeviceInfo, Trace, TraceError
from poolalloc._internal.version import __version__
from poolalloc.analysis.trace.import_report import ImportReport, count_written
from poolalloc.analysis.trace.rebuild import DeviceLog, Entry, rebuild

KIND = "RMM log"
COLUMNS = ("Thread", "Time", "Action", "Pointer", "Size", "Stream")

_ACTIONS = {"allocate": "alloc", "free": "free", "deallocate": "free", "allocate failure": "oom"}
_CLOCK = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})[.:](\d{1,9})", re.ASCII)
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,16}", re.ASCII)
_DECIMAL = re.compile(r"-?\d{1,20}", re.ASCII)
_NOTHING = ("(nil)", "nullptr", "NULL", "")
_DAY_NS = 86_400 * 10**9


def import_log(data: bytes, source: str) -> tuple[Trace, ImportReport]:
    """Return the trace in the bytes of a log called `source`, and the account of what became of its lines.

    Raises:
        TraceError: it is no such log, or has lines that say nothing.
    """
    report = ImportReport(source=source, kind=KIND)
    entries, timed = _Reader(data, report).read()
    if not entries:
        raise TraceError("it has no line that is an event")
    rebuilt = rebuild([DeviceLog(0, entries)], [], report)
    count_written(report, rebuilt.events["op"].tolist())
    report.missing += [
        "the device: taken as device 0",
        "rounded sizes, pools, stacks and segments: RMM does not log them",
        "uses by other streams: RMM leaves their order to the program",
    ]
    report.devices = [{"device": 0, "reserved_peak": None}]
    provenance = {
        "kind": KIND,
        "source": source,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "tool": f"poolalloc {__version__}",
        "torch": None,
        "allocator": "RMM",
        "allocator_settings": None,
    }
    trace = Trace(
        rebuilt.events,
        rebuilt.streams,
        rebuilt.threads,
        rebuilt.pools,
        devices=(DeviceInfo(0),),
        initial_events=rebuilt.initial_events,
        clock="unix" if timed else "monotonic",
        provenance=provenance,
    )
    return trace, report


class _Reader:
    def __init__(self, data: bytes, report: ImportReport) -> None:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise TraceError("it is no text") from None
        whole = text[: text.rfind("\n") + 1]
        if whole.count("\n") > 1 and len(whole) < len(text):  # a log of a process that was killed ends anywhere
            text = whole
            report.found["a last line that was cut off"] += 1
            report.left_out["the last line, which was cut off: the log ends before it"] += 1
        self.rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        self.report = report
        self.places: dict[str, int] = {}
        self.day_ns = 0
        self.last_ns = 0
        self.dated = False

    def read(self) -> tuple[list[Entry], bool]:
        """Return the entries, and whether their times have a date."""
        try:
            header = [name.strip() for name in next(self.rows, [])]
            if len(set(header)) != len(header) or not set(COLUMNS) <= set(header):
                raise TraceError(f"its first line is not {','.join(COLUMNS)}")
            self.places = {name: header.index(name) for name in COLUMNS}
            entries = [entry for row in self.rows if row for entry in self._entry(row, len(header))]
        except csv.Error as error:
            raise TraceError(f"line {self.rows.line_num} is no line of a CSV file: {error}") from None
        return entries, self.dated

    def _entry(self, row: list[str], width: int) -> list[Entry]:
        if len(row) != width:
            self._refuse(f"has {len(row)} values for {width} columns")
        value = {name: row[place].strip() for name, place in self.places.items()}
        action = value["Action"]
        self.report.found[action[:60]] += 1
        if action not in _ACTIONS:
            self.report.left_out[f'lines of the unknown action "{action[:60]}"'] += 1
            return []
        kind = _ACTIONS[action]
        pointer = self._hex("Pointer", value["Pointer"])
        size = self._size(value["Size"], 1 << 63 if kind == "oom" else MAX_BYTES + 1)
        time_ns = self._time(value["Time"])
        stream = self._hex("Stream", value["Stream"])
        thread = self._thread(value["Thread"])
        if kind != "oom" and pointer == 0 and size != 0:
            self._refuse(f"has {size} bytes at no address")
        return [Entry(kind, pointer, size, stream, time_ns, thread=thread)]

    def _refuse(self, problem: str) -> None:
        raise TraceError(f"line {self.rows.line_num} {problem}")

    def _hex(self, name: str, text: str) -> int:
        if text in _NOTHING:
            return 0
        if not _HEX.fullmatch(text):
            self._refuse(f"has the {name} {text[:40]!r}, which is no address")
        return int(text, 16)

    def _size(self, text: str, limit: int) -> int:
        if not _DECIMAL.fullmatch(text):
            self._refuse(f"has the Size {text[:40]!r}, which is no number of bytes")
        size = int(text)
        if not 0 <= size < limit:
            self._refuse(f"has an absurd Size: {size} bytes")
        return size

    def _thread(self, text: str) -> int:
        if not _DECIMAL.fullmatch(text) or not 0 <= int(text) < 1 << 64:
            self._refuse(f"has the Thread {text[:40]!r}, which is no number")
        return int(text)

    def _time(self, text: str) -> int:
        """Time of day, as RMM writes it, or seconds since 1970. Midnight is when the clock falls back by hours."""
        if match := _CLOCK.fullmatch(text):
            hours, minutes, seconds = (int(part) for part in match.groups()[:3])
            time_ns = ((hours * 60 + minutes) * 60 + seconds) * 10**9 + int(match[4].ljust(9, "0")) + self.day_ns
            if time_ns < self.last_ns - _DAY_NS // 2:
                self.day_ns += _DAY_NS
                time_ns += _DAY_NS
        elif _SECONDS.fullmatch(text):
            whole, _, part = text.partition(".")
            time_ns = int(whole) * 10**9 + int(part.ljust(9, "0") or 0)
            self.dated = True
        else:
            self._refuse(f"has the Time {text[:40]!r}, which is no time")
        self.last_ns = max(self.last_ns, time_ns)
        if time_ns >= 1 << 63:
            self._refuse(f"has the Time {text[:40]!r}, which is no time")
        return time_ns
