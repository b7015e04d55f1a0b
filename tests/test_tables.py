"""Tables of the command line: at any width of the terminal every name is there, and every figure is whole."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from poolalloc.bench.table import HEADINGS, LEAST_FIRST, NAMES, SILENT
from poolalloc.cli.tables import Table

ROWS = [
    (
        "hf_llama_fsdp2",
        "default",
        "60.21 GiB",
        "77.73 GiB",
        "1.2910",
        "672",
        "1,204.3",
        "80.1",
        "70.2",
        "41.0",
        "0",
        "21.4",
        "1.31x",
        "no",
    ),
    (
        "hf_llama_fsdp2",
        "expandable",
        "60.21 GiB",
        "66.82 GiB",
        "1.1097",
        "7,550",
        "312.0",
        "88.2",
        "12.1",
        "3.4",
        "0",
        "20.9",
        "1.00x",
        "no",
    ),
    (
        "hf_llama_fsdp2",
        "poolalloc",
        "60.21 GiB",
        "60.26 GiB",
        "1.0009",
        "1,252",
        "178.4",
        "61.0",
        "8.7",
        "0.9",
        "0",
        "20.3",
        "0.98x",
        "no",
    ),
]


def printed(table: Table, width: int) -> list[str]:
    out = io.StringIO()
    table.print(Console(file=out, width=width, force_terminal=True, color_system=None))
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return [line for line in lines if line]


def columns(lines: list[str]) -> list[list[str]]:
    """The cells of lines between borders, column by column."""
    rows = [line.strip("┃│").replace("┃", "│").split("│") for line in lines if line[0] in "┃│"]
    return [[cell.strip() for cell in column] for column in zip(*rows, strict=True)]


def bench_table(rows: list[tuple[str, ...]] = ROWS) -> Table:
    table = Table("", HEADINGS[:NAMES], HEADINGS[NAMES:], SILENT, LEAST_FIRST)
    for row in rows:
        table.add(*row)
    return table


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_no_name_and_no_figure_of_a_bench_is_lost_at_any_width(width: int) -> None:
    lines = printed(bench_table(), width)
    found = columns(lines)
    assert "…" not in str(found)
    # A column that has no room is named below the table.
    dropped = "".join(lines).partition("not shown, for want of room: ")[2].split("; ")
    for index, heading in enumerate(
        heading for heading in HEADINGS if heading not in ("retries", "out of memory", *dropped)
    ):
        text = "".join(found[index])
        assert text.replace(" ", "").startswith(heading.replace(" ", ""))
        for row in ROWS:
            cell = row[HEADINGS.index(heading)]
            assert cell in (text if index < NAMES else found[index]), heading


def test_the_table_of_a_demo_fits_80_columns_in_one_line_each() -> None:
    lines = printed(bench_table([("gpt", *row[1:]) for row in ROWS]), 80)
    assert max(len(line) for line in lines if not line.startswith("not shown")) <= 80
    assert [name for name in columns(lines)[1] if name] == ["allocator", "default", "expandable", "poolalloc"]


def test_a_column_that_says_nothing_is_left_out_and_comes_back_when_it_does() -> None:
    assert "out of memory" not in "".join(printed(bench_table(), 200))
    failed = [*ROWS, (*ROWS[0][:-1], "yes")]
    assert "out of memory" in "".join(printed(bench_table(failed), 200))


@given(
    st.lists(
        st.tuples(st.text("abc_ ", min_size=1, max_size=40), st.text("0123,.", min_size=1, max_size=20)), min_size=1
    ),
    st.integers(10, 120),
)
def test_figures_stay_whole(rows: list[tuple[str, str]], width: int) -> None:
    table = Table("", ["what it is"], ["a figure"])
    for name, figure in rows:
        table.add(name, figure)
    found = columns(printed(table, width))[1]
    assert [cell for cell in found if cell and cell not in ("a figure", "a", "figure")] == [
        figure for _, figure in rows
    ]
