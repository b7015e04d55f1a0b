"""Results, their JSON, and the pictures, from made-up figures."""

from __future__ import annotations

import itertools
import json
import re
import struct
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from poolalloc._internal.driver_work import DriverWork
from poolalloc.bench import panels, picture, report
from poolalloc.bench.results import Results, Row, Timeline
from poolalloc.bench.sampling import Sampler
from poolalloc.bench.table import HEADINGS, about, cells, lines_of

GIB = 1 << 30


def timeline(factor: float, steps: int = 4, samples: int = 50) -> Timeline:
    """Requested memory rises and falls in every step; reserved memory stays at the highest so far, times factor."""
    line, reserved = Timeline(), 0
    for step in range(steps):
        for index in range(samples):
            requested = int((1 + (step + 1) * (1 - abs(2 * index / samples - 1))) * GIB)
            reserved = max(reserved, int(requested * factor))
            line.seconds.append((step + index / samples) * 0.5)
            line.requested.append(requested)
            line.live.append(requested)
            line.reserved.append(reserved)
        line.steps.append((step + 1) * 0.5)
    return line


def row(allocator: str, factor: float, workload: str = "gpt") -> Row:
    line = timeline(factor)
    return Row(
        workload,
        allocator,
        peak_requested_bytes=max(line.requested),
        peak_live_bytes=max(line.live),
        peak_reserved_bytes=max(line.reserved),
        driver_calls={"cudaFree": 2, "cudaMalloc": 40},
        driver_work=DriverWork.of_steps(
            {"allocate_segment": 40, "free_segment": 2},
            [{"allocate_segment": 30}, {"allocate_segment": 34}, {"allocate_segment": 38}, {"allocate_segment": 40}],
        ),
        retries=0,
        seconds=2.0,
        size="tiny",
        steps=4,
        steps_done=4,
        driver_peak_bytes=max(line.reserved),
        timeline=line,
    )


@pytest.fixture
def results() -> Results:
    rows = [row("default", 1.4), row("expandable", 1.1), row("poolalloc", 1.0)]
    return Results("2.15.0", "NVIDIA H100 80GB HBM3", 80 * GIB, True, "poolalloc bench gpt", rows)


def test_json_has_the_promised_form_and_survives_a_round_trip(results: Results) -> None:
    data = json.loads(json.dumps(results.to_json()))
    assert set(data) == {"schema", "torch", "device", "command", "prices", "rows", "details"}
    assert data["schema"] == 1
    assert data["device"] == {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * GIB, "simulated": True}
    assert [set(one) for one in data["rows"]] == [
        {
            "workload",
            "allocator",
            "peak_requested_bytes",
            "peak_live_bytes",
            "peak_reserved_bytes",
            "overhead",
            "handles_mapped",
            "driver_milliseconds",
            "driver_calls",
            "retries",
            "seconds",
            "out_of_memory",
        }
    ] * 3
    assert data["rows"][0]["overhead"] == pytest.approx(1.4, rel=1e-6)
    assert data["rows"][0]["handles_mapped"] == 40
    assert data["rows"][0]["driver_milliseconds"] == {
        "total": [4.2, 4.2],
        "start_up": [3.0, 3.0],
        "first_half_step": [0.4, 0.4],
        "second_half_step": [0.3, 0.3],
    }
    assert Results.from_json(data).to_json() == data


def test_another_schema_is_refused(results: Results) -> None:
    with pytest.raises(ValueError, match="unknown schema 2"):
        Results.from_json(results.to_json() | {"schema": 2})


def test_overhead_is_unknown_where_nothing_was_requested() -> None:
    assert Row("w", "a").overhead is None
    assert Row("w", "a", peak_requested_bytes=0, peak_reserved_bytes=2).overhead is None


@pytest.mark.parametrize("points", [1, 7, 100, 199])
def test_a_thinned_time_line_keeps_every_peak_and_its_end(points: int) -> None:
    full = timeline(1.3)
    thin = full.thinned(points)
    assert len(thin.seconds) == len(thin.requested) == len(thin.live) == len(thin.reserved) == points
    assert max(thin.requested) == max(full.requested)
    assert max(thin.reserved) == max(full.reserved)
    assert thin.seconds[-1] == full.seconds[-1]
    assert thin.seconds == sorted(thin.seconds)
    assert thin.steps == full.steps


def test_the_sampler_bounds_its_memory_and_keeps_the_largest() -> None:
    values = iter(range(1, 10_000))
    with Sampler(lambda: ((next(values),) * 3, (0,) * 3), lambda: None, interval=60, limit=100) as sampler:
        for _ in range(1000):
            sampler.sample()
    line = sampler.timeline(10_000)
    assert len(line.seconds) < 101
    assert line.requested[-1] == 1001  # the 1,000 and the last one
    assert line.steps == []


def test_a_peak_between_two_samples_is_shown_once_and_again_after_a_reset() -> None:
    now, peak = (5, 5, 5), [9]

    def reset() -> None:
        peak[0] = 5

    with Sampler(lambda: (now, (peak[0],) * 3), reset, interval=60) as sampler:
        for _ in range(2):
            sampler.sample()
        peak[0] = 11
        sampler.step()
        sampler.sample()
        peak[0] = 7  # lower than the step's before, but the highest since
        sampler.sample()
        sampler.sample()
    line = sampler.timeline(100)
    assert line.requested == line.live == line.reserved == [9, 5, 11, 5, 7, 5, 5]
    assert len(line.steps) == 1


def test_samples_are_placed_by_steps() -> None:
    line = Timeline(seconds=[0.0, 1.0, 2.0, 3.0, 6.0, 7.0], steps=[2.0, 6.0])
    assert panels.to_steps(line) == [0.0, 0.5, 1.0, 1.25, 2.0, 2.0]


@pytest.mark.parametrize("top", [0.003, 0.9, 1.0, 7.0, 39.5, 80.0, 1234.0])
def test_ticks_are_few_round_and_within_the_axis(top: float) -> None:
    values = panels.ticks(top, 5)
    assert values[0] == 0.0
    assert values[-1] <= top * (1 + 1e-9)
    assert 3 <= len(values) <= 7


def test_all_panels_of_a_workload_share_axes_that_hold_every_peak(results: Results) -> None:
    results.rows.append(row("default", 1.2, workload="serving"))
    first, second = panels.figures(results)
    assert [panel.row.allocator for panel in first.panels] == ["default", "expandable", "poolalloc"]
    assert len(second.panels) == 1
    assert first.x_label == "step"
    assert first.x_max == 4
    for panel in first.panels:
        assert max(panel.reserved) <= first.y_max
        assert max(panel.within()) == pytest.approx(panel.peak_requested)


def test_without_steps_the_axis_is_time(results: Results) -> None:
    for one in results.rows:
        one.timeline = replace(one.timeline, steps=[])
    (figure,) = panels.figures(results)
    assert figure.x_label == "seconds since the first use of the GPU"


def test_the_table_shows_dashes_for_what_is_not_known() -> None:
    failed = cells(Row("w", "a", error="it died"), Results("2.15.0", "H100", None, True, ""))
    assert failed == ("w", "a", *["-"] * (len(HEADINGS) - 3), "failed")


def test_step_times_are_compared_where_the_driver_took_its_time(results: Results) -> None:
    slow = results.rows[2].timeline
    slow.steps = [3 * end for end in slow.steps]
    place = HEADINGS.index("step time")
    assert [cells(one, results)[place] for one in results.rows] == ["-"] * 3
    assert "took that time" not in about(results)
    results.prices_taken = True
    assert [cells(one, results)[place] for one in results.rows] == ["1.00x", "1.00x", "3.00x"]
    assert "took that time" in about(results)
    data = json.loads(json.dumps(results.to_json()))
    assert data["rows"][2]["step_time_ratio"] == 3
    assert Results.from_json(data).to_json() == data


class Reader(HTMLParser):
    """Collects the text, and checks that elements close in order."""

    VOID = ("meta", "line", "polygon")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_html_is_whole_self_contained_and_says_what_was_measured(results: Results, tmp_path: Path) -> None:
    results.rows[1].error = "died of <b>bold</b> & worse"
    results.rows[2].out_of_memory = True
    report.write_html(results, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    seen = " ".join(reader.text)
    for expected in ("NVIDIA H100 80GB HBM3", "simulated", "2.15.0", "gpt (tiny, 4 steps)", "1.4000", "+40.0 %"):
        assert expected in seen
    assert "died of <b>bold</b> & worse" in seen
    assert "out of memory" in seen
    assert not re.search(r"https?://", text)
    assert not [name for name, _ in reader.attributes if name in ("src", "href")]
    assert len(text) < 2_000_000
    data = [json.loads(value) for name, value in reader.attributes if name == "data-points"]
    assert len(data) == 3
    assert max(data[0]["reserved"]) == pytest.approx(results.rows[0].peak_reserved_bytes / GIB, abs=1e-3)


def test_a_row_without_figures_is_still_drawn(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results.rows[0] = Row("gpt", "default", error="killed")
    results.rows.append(Row("other.py", "default", error="killed"))
    assert "killed" in report.html(results)
    picture.write_png(results, tmp_path / "report.png")


def test_the_png_is_a_picture_of_some_size(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture.write_png(results, tmp_path / "report.png")
    data = (tmp_path / "report.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1000
    assert height > 500
    assert len(data) > 20_000


def test_columns_of_the_png_do_not_overprint_each_other(results: Results) -> None:
    """A path of a script may be of any length; what is cut is its beginning."""
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for workload in ("s.py", "my/script.py", "/home/somebody/projects/one/of/many/experiments/" * 3 + "train.py"):
        for row in results.rows:
            row.workload = workload
        results.rows[0].error = "died"
        canvas = Figure(figsize=(12, 4), facecolor="white")
        renderer = FigureCanvasAgg(canvas).get_renderer()
        picture.draw_table(canvas, results, 3.0)
        lines: dict[float, list[Any]] = {}
        for text in canvas.texts:
            lines.setdefault(text.get_position()[1], []).append(text.get_window_extent(renderer))
        assert len(lines) == len(results.rows) + 1
        for extents in lines.values():
            extents.sort(key=lambda extent: extent.x0)
            assert all(one.x1 < other.x0 for one, other in itertools.pairwise(extents)), workload
            assert extents[0].x0 >= 0
            assert extents[-1].x1 <= 12 * canvas.dpi
        assert any(text.get_text().endswith(workload[-8:]) for text in canvas.texts)


def test_a_time_axis_begins_at_the_first_use() -> None:
    line = Timeline([1.0, 2.0, 3.0, 4.0], [0, 0, 5, 6], [0, 0, 5, 6], [0, 0, 8, 8], steps=[3.5])
    moved = line.from_first_use()
    assert (moved.seconds, moved.requested, moved.reserved) == ([0.0, 1.0, 2.0], [0, 5, 6], [0, 8, 8])
    assert moved.steps == [1.5]
    assert Timeline().from_first_use() == Timeline()
    nothing = Timeline([1.0, 2.0], [0, 0], [0, 0], [0, 0])
    assert nothing.from_first_use().seconds == [0.0, 1.0]


def test_the_time_before_the_first_use_takes_one_sample() -> None:
    figures = [((0, 0, 0), (0, 0, 0))] * 5 + [((1, 1, 2), (1, 1, 2)), ((0, 0, 2), (1, 1, 2))]
    sampler = Sampler(iter(figures).__next__, lambda: None)
    for _ in figures:
        sampler.sample()
    assert sampler.timeline(100).reserved == [0, 2, 2]


def test_columns_that_say_nothing_are_in_no_table(results: Results) -> None:
    for row in results.rows:
        row.retries, row.out_of_memory, row.error, row.skipped = 0, False, None, None
    lines = lines_of(results)
    assert {len(line) for line in lines} == {len(HEADINGS) - 3}  # nor the step time
    assert "retries" not in report.html(results).split("<table>")[1].split("</thead>")[0]
    results.rows[0].out_of_memory = True
    assert lines_of(results)[0][-1] == "out of memory"


def test_a_missing_matplotlib_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(picture.MissingReportError, match=r"pip install 'poolalloc\[report\]'"):
        picture.require_matplotlib()
