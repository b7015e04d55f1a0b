"""How commands print a live set: what holds how much of it, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from poolalloc.analysis.live_blocks import BlockGroup, LiveBlocks
    from poolalloc.cli.tables import Table


class Row(NamedTuple):
    """Blocks that have something in common. Bytes are requested ones."""

    label: str
    blocks: int
    requested: int
    sizes: str = ""


Group = tuple[str, Sequence[Row], str]
"""What rows are grouped by, the rows, and what is said of those that are not among them, or nothing."""


def by(name: str, shares: Sequence[BlockGroup], most: int, least: int = 0) -> Group:
    """Return a group of the largest shares, of `least` bytes or more; if more than one is left, they are one row."""
    rows = [_row(share, format_size(int(share.label)) if name == "size class" else share.label) for share in shares]
    most = min(most, sum(row.requested >= least for row in rows))
    if len(rows) > most + 1:
        rest = rows[most:]
        more = Row(f"{len(rest):,} more", sum(row.blocks for row in rest), sum(row.requested for row in rest))
        rows = [*rows[:most], more]
    return name, rows, ""


def _row(share: BlockGroup, label: str) -> Row:
    sizes = {format_size(share.smallest): None, format_size(share.largest): None}
    return Row(label, share.blocks, share.requested, " - ".join(sizes))


def by_scope(live: LiveBlocks, most: int, depth: int, least: float = 0.01) -> Group:
    """Return the tree of scopes as a group: as deep as `depth`, the `most` largest and those as large as the last.

    Those with less than `least` of the live set are not among them.
    """
    from poolalloc.analysis.report.tree import tree_of

    nodes = [
        (level, node)
        for level, node in tree_of(live.by_scope).flat()
        if level < depth and node.requested >= least * live.requested
    ]
    largest = sorted((node.requested for _, node in nodes), reverse=True)[:most]
    rows = [
        Row("  " * level + node.name, node.blocks, node.requested)
        for level, node in nodes
        if node.requested >= largest[-1]
    ]
    return "scope", rows, "(each with the scopes inside it; smaller ones are left out)"


def table_of(live: LiveBlocks, title: str, groups: Sequence[Group]) -> Table:
    """Return a table of groups of a live set."""
    from poolalloc.analysis.live_blocks import shown
    from poolalloc.cli.tables import Table as NewTable

    table = NewTable(title, ["by", "what"], ["blocks", "requested", "share", "block sizes"], {"block sizes": ("",)})
    for name, rows, remark in groups:
        for number, row in enumerate(rows):
            part = f"{100 * row.requested / live.requested:.1f} %" if live.requested else "-"
            first = name if number == 0 else ""
            table.add(first, shown(row.label), f"{row.blocks:,}", format_size(row.requested), part, row.sizes)
        if remark:
            table.add("" if rows else name, remark, "", "", "", "")
        table.end_section()
    return table
