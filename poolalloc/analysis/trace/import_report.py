"""What an import found, what it had to infer, and what it could not keep: every entry of the source is accounted for.

found + inferred = written + merged + left out
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from poolalloc._internal.moved import old_names
from poolalloc._internal.trace.format import Op


@dataclass
class ImportReport:
    """The account of one import. Each Counter is by kind or by reason."""

    source: str = ""
    kind: str = ""
    found: Counter[str] = field(default_factory=Counter)
    """Entries of the source, by action."""
    inferred: Counter[str] = field(default_factory=Counter)
    """Events the source does not have, by why they must have happened."""
    written: Counter[str] = field(default_factory=Counter)
    """Events of the trace, by kind."""
    merged: Counter[str] = field(default_factory=Counter)
    """Entries that are one event together with another entry."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Entries no event was made of, by why."""
    assumed: Counter[str] = field(default_factory=Counter)
    """Properties of events that the source does not give, and what was taken instead."""
    missing: list[str] = field(default_factory=list)
    """What the source does not have at all."""
    devices: list[dict[str, object]] = field(default_factory=list)
    """Per device: what the recorded allocator itself says, in bytes; None where it does not say."""

    def balance(self) -> tuple[int, int]:
        """Return the two sides of the equation above; they are equal."""
        return (
            self.found.total() + self.inferred.total(),
            self.written.total() + self.merged.total() + self.left_out.total(),
        )

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values."""
        counters = ("found", "inferred", "written", "merged", "left_out", "assumed")
        return {
            "schema": 1,
            "source": self.source,
            "kind": self.kind,
            **{name: dict(sorted(getattr(self, name).items())) for name in counters},
            "missing": self.missing,
            "devices": self.devices,
        }


def count_written(report: ImportReport, ops: list[int]) -> None:
    """Note the events of the finished trace."""
    report.written = Counter({Op(op).name.lower(): number for op, number in Counter(ops).items()})


if not TYPE_CHECKING:  # names of before, which warn
    __getattr__ = old_names(__name__, {"Report": "ImportReport"})
