"""Memory snapshots of PyTorch, of every version since 2.1, as traces.

A snapshot (`torch.cuda.memory._dump_snapshot`) is a pickle of plain values: per device a list of entries, the newest of
a ring buffer, and the segments with their blocks when it was taken. It is read with an unpickler that refuses every
global, so that opening one runs nothing. Keys come and go between versions; what is not there is inferred or noted.
"""

from __future__ import annotations

import gc
import hashlib
import io
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from itertools import chain
from typing import Any, NoReturn

from poolalloc._internal.trace.format import MAX_BYTES, MAX_DEVICES, DeviceInfo, Frame, StackTable, Trace, TraceError
from poolalloc._internal.version import __version__
from poolalloc.analysis.trace.import_report import ImportReport, count_written
from poolalloc.analysis.trace.rebuild import (
    ORDINARY,
    SEGMENT_OPS,
    DeviceLog,
    Entry,
    FinalBlock,
    Pool,
    Segment,
    rebuild,
    reserved_at_start,
)

KIND = "PyTorch memory snapshot"

_TOP = {"segments", "device_traces", "allocator_settings", "external_annotations", "host_segments", "host_traces"}
_SEGMENT = {
    "device",
    "address",
    "total_size",
    "allocated_size",
    "active_size",
    "requested_size",
    "stream",
    "segment_type",
    "segment_pool_id",
    "is_expandable",
    "frames",
    "blocks",
}
_BLOCK = {"address", "size", "requested_size", "state", "frames"}
_ENTRY = {
    "action",
    "addr",
    "size",
    "stream",
    "time_us",
    "frames",
    "device_free",
    "pool_id",
    "compile_context",
    "user_metadata",
    "internal_metadata",
}
_FRAME = {"filename", "name", "line"}
_ANNOTATION = {"stage", "name", "device", "time_us"}
_ACTIONS = {"alloc", "free_requested", "free_completed", *SEGMENT_OPS, "oom", "snapshot", "annotate"}
_STATES = {"active_allocated": False, "active_pending_free": True, "active_awaiting_free": True}
_LONGEST_TEXT = 10_000
# Texts that torch attaches to an entry, and the value that says there is none.
_NOTES = (("compile_context", "N/A"), ("user_metadata", ""), ("internal_metadata", ""))


# --- the pickle -----------------------------------------------------------------------------------------------------


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values: a file that names a class or a function is refused before anything of it is loaded."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise TraceError(f"it asks for {module}.{name}; a snapshot holds plain values only, so this file is not read")

    def persistent_load(self, key: object) -> NoReturn:
        raise TraceError("it asks for an object from outside; a snapshot holds plain values only")


def load_plain(data: bytes) -> Any:
    """Return the value that a pickle holds.

    A few bytes can ask the unpickler for terabytes, so it gets no more memory than a file of this size can need.

    Raises:
        TraceError: it is damaged, or holds more than plain values.
    """
    try:
        # Where a damaged file asks for a buffer that cannot be had, Python prints a complaint of its own too.
        with _memory_bounded((1 << 30) + 64 * len(data)), redirect_stderr(io.StringIO()):
            return _PlainUnpickler(io.BytesIO(data)).load()
    except TraceError:
        raise
    except MemoryError:
        raise TraceError("it is damaged: it asks for far more memory than its size explains") from None
    except Exception as error:  # a pickle is a program, and a damaged one fails in any way there is
        raise TraceError(f"it is no pickle, or it was cut off: {' '.join(str(error).split())[:120]}") from None


@contextmanager
def _memory_bounded(more: int) -> Iterator[None]:
    """While in force, this process cannot grow by more than `more` bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = min([now + more, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# --- the import -----------------------------------------------------------------------------------------------------


def import_snapshot(data: bytes, source: str) -> tuple[Trace, ImportReport]:
    """Return the trace in the bytes of a snapshot file called `source`, and the account of what became of its entries.

    Raises:
        TraceError: it is no snapshot, or contradicts itself.
    """
    try:
        with _no_collection():
            return _Import(load_plain(data), data, source).run()
    except RecursionError:
        raise TraceError("its values are nested too deeply, or contain themselves") from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of values are made and all are kept, so looking for garbage among them, again and again, is in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Import:
    def __init__(self, snapshot: Any, data: bytes, source: str) -> None:
        if isinstance(snapshot, list):
            raise TraceError("it is a list of segments (torch.cuda.memory_snapshot()), which has no events")
        if not isinstance(snapshot, dict) or "segments" not in snapshot or "device_traces" not in snapshot:
            raise TraceError("it is no memory snapshot of PyTorch: it has no segments and device_traces")
        self.snapshot = snapshot
        self.data = data
        self.report = ImportReport(source=source, kind=KIND)
        self.stacks = StackTable()
        self.known_stacks: dict[tuple[int, str], int] = {}
        self.known_pools: dict[int, tuple[Any, Pool]] = {}
        self.marks: list[str] = []
        self.timed = True
        self._note_unknown(snapshot, _TOP, "the snapshot")

    def run(self) -> tuple[Trace, ImportReport]:
        traces = _list(self.snapshot["device_traces"], "device_traces")
        segments = self._segments()
        devices = sorted({*(device for device, trace in enumerate(traces) if trace), *segments})
        if devices and devices[-1] >= MAX_DEVICES:
            raise TraceError(f"it has a device {devices[-1]}; there are 0 to {MAX_DEVICES - 1}")
        if not devices:
            raise TraceError("it is empty: no device has a segment or an event")
        if not any(traces):
            self.report.missing.append(
                "events: memory history was not recorded, so this is the state at one moment. For events call "
                "torch.cuda.memory._record_memory_history() at the program's start, _dump_snapshot(FILE) at its end"
            )
        self.timed = all("time_us" in _dict(entry, "an entry") for entry in chain(*map(_entries, traces)))
        rounding = _Rounding(self.snapshot.get("allocator_settings"))
        logs = []
        for device in devices:
            entries = self._entries(device, _entries(traces[device]) if device < len(traces) else [])
            logs.append(DeviceLog(device, entries, segments.get(device, []), rounding.of))
        rebuilt = rebuild(logs, self._annotations(), self.report)
        if len(rebuilt.events) == 0:
            raise TraceError("it is empty: nothing happens in it, and nothing is held")
        if rounding.guessed:
            self.report.assumed[f"rounded size: {rounding.text}"] += rounding.guessed
        self._leave_out_host()
        self._note_missing(logs)
        self.report.devices = [self._device_account(log) for log in logs]
        count_written(self.report, rebuilt.events["op"].tolist())
        infos = tuple(DeviceInfo(log.device, reserved_at_start=reserved_at_start(log)) for log in logs)
        trace = Trace(
            rebuilt.events,
            rebuilt.streams,
            rebuilt.threads,
            rebuilt.pools,
            self.stacks.table(),
            tuple(self.marks),
            infos,
            rebuilt.initial_events,
            "unix" if self.timed else "order",
            self._provenance(),
        )
        return trace, self.report

    # --- entries ----------------------------------------------------------------------------------------------------

    def _entries(self, device: int, rows: list[Any]) -> list[Entry]:
        entries = []
        for index, row in enumerate(rows):
            where = f"entry {index} of device {device}"
            entry = self._entry(index, row, where)
            if entry is not None:
                entries.append(entry)
        return entries

    def _entry(self, index: int, row: dict[str, Any], where: str) -> Entry | None:
        action = row.get("action")
        if not isinstance(action, str):
            raise TraceError(f"{where} has no action")
        self.report.found[_text(action)] += 1
        self._note_unknown(row, _ENTRY, "entries")
        if action not in _ACTIONS:
            self.report.left_out[f'entries of the unknown action "{_text(action)}"'] += 1
            return None
        time_ns = _int(row, "time_us", where, 1 << 54) * 1000 if self.timed else index * 1000
        stack = self._stack(row, where)
        pool = self._pool(row["pool_id"], where) if "pool_id" in row else None
        stream = _int(row, "stream", where, 1 << 64, wrap=True) if "stream" in row else 0
        if action == "annotate":
            text = f"annotate: {_text(row.get('user_metadata', ''))}"
            return Entry("mark", 0, 0, stream, time_ns, stack, extra=self._mark(text))
        if action in ("oom", "snapshot"):
            size = _int(row, "size", where, 1 << 63) if "size" in row else 0
            extra = _int(row, "device_free", where, 1 << 63, wrap=True) if "device_free" in row else 0
            return Entry(action, 0, size, stream, time_ns, stack, pool=pool, extra=extra)
        address = _int(row, "addr", where, 1 << 64, wrap=True)
        size = _int(row, "size", where, MAX_BYTES + 1)
        return Entry(action, address, size, stream, time_ns, stack, pool=pool)

    def _stack(self, row: dict[str, Any], where: str) -> int:
        frames = row.get("frames")
        notes = [f"{name}: {_text(row[name])}" for name, nothing in _NOTES if name in row and row[name] != nothing]
        if not frames and not notes:
            return 0
        key = (id(frames), "\n".join(notes))  # torch writes a stack once and refers to it again: the same object
        number = self.known_stacks.get(key)
        if number is None:
            rows = [] if frames is None else _list(frames, f"the stack of {where}")
            stack = [Frame("", note, 0) for note in notes] + [self._frame(frame, where) for frame in rows]
            number = self.known_stacks[key] = self.stacks.add(stack)
        return number

    def _pool(self, value: Any, where: str) -> Pool:
        known = self.known_pools.get(id(value))  # torch writes one pair for all, and this keeps it alive
        if known is None:
            known = self.known_pools[id(value)] = (value, _pool(value, where))
        return known[1]

    def _frame(self, frame: Any, where: str) -> Frame:
        row = _dict(frame, f"a frame of {where}")
        self._note_unknown(row, _FRAME, "frames")
        line = row.get("line", 0)
        line = line if isinstance(line, int) and 0 <= line < 1 << 32 else 0
        return Frame(_text(row.get("filename", "")), _text(row.get("name", "")), line)

    def _mark(self, text: str) -> int:
        self.marks.append(text)
        return len(self.marks) - 1

    def _annotations(self) -> list[tuple[int, Entry]]:
        marks = []
        for row in _list(self.snapshot.get("external_annotations", []), "external_annotations"):
            entry = _dict(row, "an annotation")
            self.report.found["annotation"] += 1
            self._note_unknown(entry, _ANNOTATION, "annotations")
            device = entry.get("device", 0)
            device = device if isinstance(device, int) and 0 <= device < MAX_DEVICES else 0
            if not self.timed or not isinstance(entry.get("time_us"), int):
                self.report.left_out["annotations without a time"] += 1
                continue
            text = " ".join(_text(entry[name]) for name in ("stage", "name") if entry.get(name) not in (None, ""))
            time_ns = _int(entry, "time_us", "an annotation", 1 << 54) * 1000
            marks.append((device, Entry("mark", 0, 0, 0, time_ns, extra=self._mark(text))))
        marks.sort(key=lambda mark: mark[1].time_ns)
        return marks

    # --- segments ---------------------------------------------------------------------------------------------------

    def _segments(self) -> dict[int, list[Segment]]:
        segments: dict[int, list[Segment]] = {}
        for index, row in enumerate(_list(self.snapshot["segments"], "segments")):
            where = f"segment {index}"
            fields = _dict(row, where)
            self._note_unknown(fields, _SEGMENT, "segments")
            device = _int(fields, "device", where, MAX_DEVICES) if "device" in fields else 0
            pool = ORDINARY
            if "segment_pool_id" in fields:
                pool = _pool(fields["segment_pool_id"], where)
            else:
                self.report.assumed["pool of segments, which the snapshot does not give: the ordinary one"] += 1
            segments.setdefault(device, []).append(
                Segment(
                    _int(fields, "address", where, 1 << 64, wrap=True),
                    _int(fields, "total_size", where, MAX_BYTES + 1),
                    _int(fields, "stream", where, 1 << 64, wrap=True) if "stream" in fields else 0,
                    pool,
                    bool(fields.get("is_expandable", False)),
                    self._blocks(fields, where),
                )
            )
        return segments

    def _blocks(self, segment: dict[str, Any], where: str) -> tuple[FinalBlock, ...]:
        """The blocks that are not free. They tile the segment: one without an address starts where the last ended."""
        blocks = []
        address = _int(segment, "address", where, 1 << 64, wrap=True)
        for row in _list(segment.get("blocks", []), f"the blocks of {where}"):
            fields = _dict(row, f"a block of {where}")
            self._note_unknown(fields, _BLOCK, "blocks")
            size = _int(fields, "size", f"a block of {where}", MAX_BYTES + 1)
            if "address" in fields:
                address = _int(fields, "address", f"a block of {where}", 1 << 64, wrap=True)
            state = fields.get("state")
            if not isinstance(state, str) or (state != "inactive" and state not in _STATES):
                raise TraceError(f"a block of {where} is in the unknown state {_text(state)!r}")
            if state != "inactive" and size > 0:
                requested = self._requested(fields, size, where)
                stack = self._stack({"frames": fields.get("frames")}, where)
                blocks.append(FinalBlock(address, size, requested, _STATES[state], stack))
            address += size
        return tuple(blocks)

    def _requested(self, fields: dict[str, Any], size: int, where: str) -> int:
        if "requested_size" not in fields:
            self.report.assumed["requested size of blocks at the end: what the trace says, else the rounded size"] += 1
            return 0
        requested = _int(fields, "requested_size", f"a block of {where}", MAX_BYTES + 1)
        if requested > size:
            raise TraceError(f"a block of {where} has {size} bytes for {requested} requested")
        return requested

    # --- the account ------------------------------------------------------------------------------------------------

    def _note_unknown(self, row: dict[str, Any], known: set[str], what: str) -> None:
        if row.keys() - known:
            for key in row.keys() - known:
                self.report.assumed[f'key "{_text(key)}" of {what}: not kept'] += 1

    def _leave_out_host(self) -> None:
        for trace in _list(self.snapshot.get("host_traces", []), "host_traces"):
            rows = trace if isinstance(trace, list) else [trace]
            if rows:
                self.report.found["host entry"] += len(rows)
                self.report.left_out["entries about pinned memory of the host"] += len(rows)

    def _note_missing(self, logs: list[DeviceLog]) -> None:
        missing = self.report.missing
        if not self.timed:
            missing.append("times: events are in their order, 1000 ns apart")
        if len(self.stacks.table()) == 1:
            missing.append("stacks: none was recorded")
        missing.append("threads, marks of steps, the device's name and memory: snapshots do not have them")
        if not any(entry.pool is not None for log in logs for entry in log.entries):
            missing.append("pools of entries: this version does not write them")

    def _device_account(self, log: DeviceLog) -> dict[str, Any]:
        rows = [row for row in self.snapshot["segments"] if row.get("device", 0) == log.device]
        start = reserved_at_start(log)
        peak = held = start
        for entry in log.entries:
            if held is not None and peak is not None and entry.action in SEGMENT_OPS:
                held += entry.size if entry.action in ("segment_alloc", "segment_map") else -entry.size
                peak = max(peak, held)

        def total(key: str) -> int | None:
            values = [row.get(key) for row in rows]
            return sum(values) if all(isinstance(value, int) and 0 <= value <= MAX_BYTES for value in values) else None

        return {
            "device": log.device,
            "segments_at_end": len(rows),
            "expandable": any(segment.expandable for segment in log.segments or ()),
            "reserved_at_start": start,
            "reserved_peak": peak,
            "reserved_at_end": total("total_size"),
            "allocated_at_end": total("allocated_size"),
            "active_at_end": total("active_size"),
            "requested_at_end": total("requested_size"),
        }

    def _provenance(self) -> dict[str, Any]:
        settings = self.snapshot.get("allocator_settings")
        return {
            "kind": KIND,
            "source": self.report.source,
            "sha256": hashlib.sha256(self.data).hexdigest(),
            "bytes": len(self.data),
            "tool": f"poolalloc {__version__}",
            "torch": None,  # a snapshot does not say which version wrote it
            "allocator": "torch",
            "allocator_settings": _plain(settings) if isinstance(settings, dict) else None,
        }


class _Rounding:
    """What torch's allocator sets aside for a request, by its settings. What a split leaves over is not known."""

    def __init__(self, settings: Any) -> None:
        self.guessed = 0
        self.divisions: dict[int, int] = {}
        table = settings.get("roundup_power2_divisions") if isinstance(settings, dict) else None
        if isinstance(table, dict):
            for key, value in table.items():
                if str(key).isdecimal() and isinstance(value, int) and value > 1:
                    self.divisions[int(key) << 20] = value
        self.text = "by roundup_power2_divisions" if self.divisions else "the next multiple of 512 B"

    def of(self, size: int) -> int:
        """Return the bytes set aside for `size` bytes."""
        self.guessed += 1
        granules = -(-size // 512) * 512
        if not self.divisions or size <= 512:
            return granules
        power = 1 << (size.bit_length() - 1)
        divisions = self.divisions.get(min(max(power, 1 << 20), 1 << 35), 0)
        if divisions <= 1 or size <= 512 * divisions:
            return granules
        step = power // divisions
        return -(-size // step) * step


# --- values that nobody vouches for ---------------------------------------------------------------------------------


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise TraceError(f"{what} is no list")
    return list(value)


def _entries(trace: Any) -> list[Any]:
    return _list(trace, "a device's trace")


def _dict(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TraceError(f"{what} is no table")
    return value


def _int(row: dict[str, Any], key: str, where: str, limit: int, *, wrap: bool = False) -> int:
    """A whole number from 0 up to, not including, `limit`. wrap: addresses, which torch may write as signed."""
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TraceError(f"{where} has no {key}" if value is None else f"{where} has {key} {_text(value)!r}")
    if wrap and -(1 << 63) <= value < 0:
        value += 1 << 64
    if not 0 <= value < limit:
        raise TraceError(f"{where} has an absurd {key}: {_text(value)}")
    return value


def _pool(value: Any, where: str) -> Pool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TraceError(f"{where} has the pool {_text(value)!r}, which is no pair of numbers")
    first, second = ({"pool": half} for half in value)
    return _int(first, "pool", where, 1 << 64), _int(second, "pool", where, 1 << 64)


def _text(value: Any) -> str:
    """A text that can be encoded and is of a sensible length, whatever was in it."""
    if isinstance(value, int) and abs(value) >= 1 << 128:
        return "a number of more than 38 digits"
    text = value if isinstance(value, str) else str(value)
    return text[:_LONGEST_TEXT].encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    if isinstance(value, float) and abs(value) <= 1e300:
        return value
    return _text(value)
