"""The page of a replay: what it holds is what happened, it loads nothing, and a browser can draw it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from trace_kit import MiB, pickled, snapshot_of, toys, trace_of

from poolalloc._internal.trace.format import Frame, StackTable
from poolalloc.analysis import view
from poolalloc.analysis.replay import Replayer
from poolalloc.analysis.trace import Op, Trace
from poolalloc.analysis.trace.torch_snapshot import import_snapshot
from poolalloc.analysis.view import blocks as of_blocks
from poolalloc.analysis.view.layers import Layer

TYPES = {"Float64Array": "<f8", "Uint32Array": "<u4", "Int32Array": "<i4", "Uint16Array": "<u2"}
EVIL = "</script><img src=x onerror=alert(1)>"

SMALL = trace_of(
    [
        (Op.ALLOC, 1, 3 * MiB),
        (Op.MARK, 0, 0),
        (Op.ALLOC, 2, 700, {"stack": 1}),
        (Op.RECORD_STREAM, 1, 3 * MiB, {"stream": 1}),
        (Op.FREE, 1, 3 * MiB),
        (Op.ALLOC, 3, 5 * MiB, {"device": 1}),
        (Op.FREE_COMPLETED, 1, 3 * MiB),
        (Op.ALLOC, 4, 3 * MiB),
        (Op.FREE, 2, 700),
    ],
    streams=(0, 77),
    marks=(EVIL,),
)


def small() -> Trace:
    stacks = StackTable()
    assert stacks.add([Frame("/home/me/train.py", EVIL, 3), Frame("/x/site-packages/torch/nn.py", "forward", 9)]) == 1
    return Trace(**{**vars(SMALL), "stacks": stacks.table()})


def page_of(trace: Trace, **options: Any) -> str:
    result = Replayer(trace).run(samples=50, placements=True)
    return view.render(trace, view.of_result(result, {"driver calls": "7"}), "run.npz", ["a note"], **options)


class Page:
    """What the script of a page would read from it."""

    def __init__(self, text: str) -> None:
        found = re.search(r'id="document">(.*?)</script>', text, re.DOTALL)
        assert found is not None
        self.spec = json.loads(found[1])
        found = re.search(r'id="columns">(.*?)</script>', text, re.DOTALL)
        assert found is not None
        self._data = gzip.decompress(base64.b64decode(found[1]))

    def column(self, name: str) -> np.ndarray:
        kind, offset, count = self.spec["columns"][name]
        return np.frombuffer(self._data, TYPES[kind], count, offset)

    def events(self, name: str) -> list[int]:
        return np.cumsum(self.column("knots"))[self.column(name)].tolist()

    def addresses(self, layer: int, device: int) -> list[int]:
        row, start, high, low = (self.column(f"layer{layer}/{device}/{n}") for n in ("row", "start", "high", "low"))
        at = np.searchsorted(start, row, side="right") - 1
        first = [int(upper) << 32 | int(lower) for upper, lower in zip(high[at], low[at], strict=True)]
        offset = row - start[at]
        return [base + int(far) for base, far in zip(first, offset, strict=True) if not np.isnan(far)]


def test_every_block_is_where_and_when_it_was() -> None:
    trace = small()
    page = Page(page_of(trace))
    placements = Replayer(trace).run(placements=True).placements
    assert placements is not None
    assert page.events("0/birth") == [0, 2, 7]
    assert page.events("0/free") == [4, 8, 9]
    assert page.events("0/gone") == [6, 8, 9]
    assert page.column("0/requested").tolist() == [3 * MiB, 700, 3 * MiB]
    assert page.addresses(0, 0) == [int(placements[number]) for number in (0, 1, 3)]
    assert page.addresses(0, 1) == [int(placements[2])]
    assert page.spec["blocks"] == {"drawn": 4, "all": 4, "area_left_out": 0.0}
    assert (np.cumsum(page.column("times")) == np.append(np.arange(9), 8)[np.cumsum(page.column("knots"))] * 1000).all()


def test_curves_are_those_of_the_replay() -> None:
    trace = small()
    curve = Replayer(trace).run(samples=50).devices[0].curve
    assert curve is not None
    page = Page(page_of(trace))
    assert page.events("layer0/events") == curve.events.tolist()
    for quantity in ("requested", "live", "resident", "reserved"):
        assert page.column(f"layer0/0/{quantity}").tolist() == curve.values[quantity].tolist()


def test_a_page_loads_nothing_and_runs_nothing_that_a_trace_brings_along() -> None:
    text = page_of(small())
    assert EVIL not in text
    assert text.count("</script>") == 3
    assert not re.search(r"""(src|href)\s*=\s*["']|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert Page(text).spec["lines"]["texts"] == [EVIL]
    stack = Page(text).spec["stacks"]["of"]["1"]
    assert stack["name"] == f"{EVIL} (/home/me/train.py:3)"
    assert len(stack["frames"]) == 2


def test_what_is_too_much_is_left_out_and_said() -> None:
    rows = [(Op.ALLOC, number, 512 * number) for number in range(1, 101)]
    text = page_of(trace_of(rows), most_drawn=10)
    page = Page(text)
    assert page.spec["blocks"]["drawn"] == 10
    assert page.spec["blocks"]["all"] == 100
    area = [512 * number * (101 - number) for number in range(1, 101)]
    assert page.spec["blocks"]["area_left_out"] == pytest.approx(1 - sum(sorted(area)[-10:]) / sum(area), rel=0.05)


def test_an_allocator_that_stopped_has_places_for_what_it_came_to() -> None:
    trace = small()
    layer = Layer(
        name="torch",
        how="performed",
        events=np.array([0, 2]),
        values={0: {"reserved": np.array([1, 2])}, 1: {"reserved": np.array([0, 0])}},
        peaks={0: {"reserved": 2}, 1: {"reserved": 0}},
        placements=np.array([4096, 1 << 40], np.uint64),
        out_of_memory=5,
    )
    page = Page(view.render(trace, [layer], "run.npz", []))
    assert page.addresses(0, 0) == [4096, 1 << 40]
    assert np.isnan(page.column("layer0/0/row")).tolist() == [False, False, True]
    assert page.column("layer0/1/row").tolist() != []
    assert np.isnan(page.column("layer0/1/row")).all()


@given(st.lists(st.tuples(st.integers(1, 1 << 45), st.integers(0, 1 << 26)), max_size=40))
def test_a_map_keeps_the_order_and_the_distance_of_near_addresses(found: list[tuple[int, int]]) -> None:
    addresses = np.array([address for address, _ in found], np.uint64)
    sizes = np.array([size for _, size in found], np.uint64)
    places = of_blocks.places_of(addresses, sizes)
    order = np.argsort(addresses, kind="stable")
    assert (np.diff(places.rows[order]) >= 0).all()
    for one, row, size in zip(addresses.tolist(), places.rows.tolist(), sizes.tolist(), strict=True):
        assert 0 <= row <= row + size <= places.height or size == 0
        for other, there in zip(addresses.tolist(), places.rows.tolist(), strict=True):
            if 0 <= other - one <= max(size, of_blocks.GAP):
                assert there - row == other - one


@given(toys(), toys(device=1))
def test_no_two_blocks_that_live_together_are_drawn_over_each_other(one: Any, two: Any) -> None:
    assume(one.log or two.log)
    trace, _ = import_snapshot(pickled(snapshot_of(one, two)), "toy")
    assume(trace.used_devices())
    placements = Replayer(trace).run(placements=True).placements
    assert placements is not None
    found = of_blocks.of_trace(trace)
    assert len(placements) == len(found)
    for i in range(len(found)):
        for j in range(i):
            together = found.birth[i] < found.gone[j] and found.device[i] == found.device[j]
            apart = (
                placements[i] + found.requested[i] <= placements[j]
                or placements[j] + found.requested[j] <= placements[i]
            )
            assert apart or not together


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to draw the page with")
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    # Every choice is made once; then what was drawn on the map is counted.
    script = """<script>
    (function look() {
      if (!document.body.dataset.ready) return setTimeout(look, 20);
      for (const select of document.querySelectorAll("select"))
        for (const option of [...select.options].reverse()) {
          select.value = option.value;
          select.dispatchEvent(new Event("change"));
        }
      const map = document.getElementById("map"), box = map.getBoundingClientRect();
      for (let x = 80; x < box.width; x += 15)
        for (let y = 25; y < box.height; y += 15)
          map.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x, clientY: box.top + y }));
      setTimeout(() => {
        const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.height).data, colours = new Set();
        for (let i = 0; i < pixels.length; i += 4) colours.add(pixels.slice(i, i + 4).join());
        document.body.dataset.colours = colours.size;
        document.body.dataset.detail = document.getElementById("detail").textContent;
      }, 300);
    })();
    </script>"""
    path.write_text(page_of(small()) + script, encoding="utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=8000", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-ready="true"' in shown
    found = re.search(r'data-colours="(\d+)"', shown)
    assert found is not None
    assert int(found[1]) > 10  # axes, words, blocks
    assert "All 4 blocks are drawn" in shown
    assert "train.py:3" in shown
