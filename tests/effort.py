"""How much of a random test runs: little by default, much with POOLALLOC_LONG_TESTS (make check-long)."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("POOLALLOC_LONG_TESTS"))


def examples(usual: int) -> int:
    """Return how many examples hypothesis draws where `usual` would be thorough."""
    return usual * 10 if LONG else max(usual // 4, 20)
