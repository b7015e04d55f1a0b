"""compare(): what ways of doing the same thing cost, in exact bytes, under poolalloc and torch's own allocator."""

import textwrap
from collections.abc import Callable

import pytest

START = """
    import json
    import torch
    from poolalloc.analysis.compare import compare

    MiB = 1 << 20
    def mib(count):
        return torch.empty(count * MiB, dtype=torch.uint8, device="cuda")
    def show(found, *names):
        print(json.dumps([[getattr(cost, name) for name in names] for cost in found.costs]))
"""
INSTALL = """
    import poolalloc
    poolalloc.install()
"""


@pytest.fixture(params=["poolalloc", "built-in"])
def compared(request: pytest.FixtureRequest, on_sim: Callable) -> Callable:
    """compared(program) runs it after START and returns the JSON that it prints."""
    install = INSTALL if request.param == "poolalloc" else ""

    def run(program: str) -> object:
        return on_sim("".join(textwrap.dedent(part) for part in (install, START, program))).value

    return run


def test_bytes_are_exact(compared: Callable) -> None:
    found = compared("""
        base = mib(3)
        elsewhere = []
        def both():
            a = mib(4)
            b = mib(2)
            del a
            c = mib(1)
            return b, c
        def left():
            elsewhere.append(mib(5))
        show(compare({"both": both, "left": left, "nothing": lambda: None}, repeat=1, warm_up=0),
             "peak", "allocated", "allocations", "kept", "left", "out_of_memory")
    """)
    mib = 1 << 20
    assert found == [
        [6 * mib, 7 * mib, 3, 3 * mib, 0, False],
        [5 * mib, 5 * mib, 1, 5 * mib, 5 * mib, False],
        [0, 0, 0, 0, 0, False],
    ]


def test_what_another_way_cached_does_not_count(compared: Callable) -> None:
    found = compared("""
        ways = {"small": lambda: mib(32), "large": lambda: mib(512)}
        there, back = compare(ways), compare(dict(reversed(ways.items())))
        assert there["small"].peak_reserved == back["small"].peak_reserved
        show(there, "peak", "peak_reserved")
    """)
    assert found == [[32 << 20] * 2, [512 << 20] * 2]


def test_warming_up_and_repeating_are_done(compared: Callable) -> None:
    found = compared("""
        calls = []
        def way():
            calls.append(mib(1) if len(calls) < 2 else None)
        found = compare({"way": way}, warm_up=2, repeat=4)
        show(found, "allocations", "kept")
        assert len(calls) == 6
    """)
    assert found == [[0, 0]]


def test_garbage_is_neither_kept_nor_left(compared: Callable) -> None:
    found = compared("""
        class Knot:
            def __init__(self):
                self.own, self.held = self, mib(8)
        show(compare({"knot": Knot, "dropped": lambda: Knot() and None}), "peak", "kept", "left")
    """)
    assert found == [[8 << 20, 8 << 20, 0], [8 << 20, 0, 0]]


def test_running_out_of_memory_ends_a_way_alone(compared: Callable) -> None:
    found = compared("""
        found = compare({"much": lambda: [mib(3000) for _ in range(4)], "little": lambda: mib(1)})
        assert "out of memory" in str(found).splitlines()[2], str(found)
        assert found["little"].peak == MiB
        show(found, "out_of_memory", "peak", "left")
    """)
    assert found == [[True, 6000 << 20, 0], [False, 1 << 20, 0]]


def test_the_table_and_wrong_use(compared: Callable) -> None:
    lines = compared("""
        from poolalloc.errors import UsageError
        for ways, options in (({}, {}), ({"a": print}, {"repeat": 0}), ({"a": print}, {"warm_up": -1})):
            try:
                compare(ways, **options)
            except UsageError:
                continue
            raise AssertionError(ways)
        try:
            compare({"a": lambda: 1 / 0})
        except ZeroDivisionError:
            pass
        found = compare({"one": lambda: mib(2), "two": lambda: (mib(2), mib(2))}, device="cuda:0")
        assert found.to_json()["costs"][1]["allocations"] == 2
        try:
            found["three"]
        except KeyError:
            pass
        print(json.dumps(str(found).splitlines()))
    """)
    assert lines[0].split()[:2] == ["peak", "to"]
    assert lines[2].split()[:4] == ["one", "2", "MiB", "1.000"]
    assert lines[3].split()[:4] == ["two", "4", "MiB", "2.000"]
