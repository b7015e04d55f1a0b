"""tools/check_includes.py: the rooms of csrc/core see only what lies below them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_includes", ROOT / "tools" / "check_includes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("file", "includes", "allowed"),
    [
        ("heap/heap.h", "core/placement/arena.h", True),
        ("heap/heap.h", "core/device/ladder.h", False),
        ("heap/heap.h", "core/allocator.h", False),
        ("placement/arena.h", "driver/driver.h", False),
        ("backing/residency.h", "driver/driver.h", True),
        ("base/types.h", "core/options/options.h", False),
        ("attic/new.h", "core/base/types.h", False),
        ("allocator.h", "core/device/device_heap.h", True),
    ],
)
def test_a_room_sees_what_lies_below_it(checker: ModuleType, file: str, includes: str, allowed: bool) -> None:
    assert (checker.against_the_rooms(ROOT / "csrc" / "core" / file, includes) is None) is allowed


def test_the_list_of_rooms_is_complete(checker: ModuleType) -> None:
    core = ROOT / "csrc" / "core"
    rooms = {folder.name for folder in core.iterdir() if folder.is_dir()}
    assert rooms == checker.ROOMS.keys()
    assert set(re.findall(r"^\| `(\w+)/` ", (core / "README.md").read_text(), re.MULTILINE)) == rooms


def test_no_room_is_seen_from_below(checker: ModuleType) -> None:
    order = list(checker.ROOMS)
    for number, room in enumerate(order):
        assert not set(checker.ROOMS[room]) & set(order[number:])
