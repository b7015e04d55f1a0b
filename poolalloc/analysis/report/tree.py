"""Scopes as the tree that their names are: what each holds with all that is inside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from poolalloc.analysis.live_blocks import BlockGroup


@dataclass
class Node:
    """A scope, with what is inside it. Bytes are requested ones."""

    name: str
    """From the scope around it on."""
    blocks: int = 0
    requested: int = 0
    inside: dict[str, Node] = field(default_factory=dict)

    def flat(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """Yield what is inside, largest first, each followed by what is inside it, with how deep it lies."""
        for node in sorted(self.inside.values(), key=lambda node: (-node.requested, node.name)):
            yield depth, node
            yield from node.flat(depth + 1)


def parts_of(scope: str) -> list[str]:
    """Return the parts of a scope's name; each keeps what parts it from the next."""
    return re.split(r"(?<=[/.])", scope)


def tree_of(shares: Iterable[BlockGroup]) -> Node:
    """Return the tree of the scopes that blocks are told of (LiveBlocks.by_scope)."""
    root = Node("")
    for share in shares:
        node = root
        _add(node, share)
        for name in (part.rstrip("/.") for part in parts_of(share.label)):
            node = node.inside.setdefault(name, Node(name))
            _add(node, share)
    return _joined(root)


def _add(node: Node, share: BlockGroup) -> None:
    node.blocks += share.blocks
    node.requested += share.requested


def _joined(node: Node) -> Node:
    """Let a scope that holds nothing but one other stand on its line: `blocks` and `0`, say."""
    inside = [_joined(each) for each in node.inside.values()]
    if node.name and len(inside) == 1 and inside[0].blocks == node.blocks:
        return Node(f"{node.name}.{inside[0].name}", node.blocks, node.requested, inside[0].inside)
    return Node(node.name, node.blocks, node.requested, {each.name: each for each in inside})
