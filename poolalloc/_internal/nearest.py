"""The known word nearest to an unknown one, for error texts. The core does the same in options.cpp."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the word of `known`, which must not be empty, that the fewest single-letter changes turn `word` into."""
    return min(known, key=lambda candidate: edit_distance(word.lower(), candidate.lower()))


def edit_distance(a: str, b: str) -> int:
    """Return how many letters must be added, taken away or replaced to turn `a` into `b` (Levenshtein's distance)."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]
