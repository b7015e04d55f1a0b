"""The rooms of the package: what is public is in the manual, old paths of modules work and say where things are now."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest

import poolalloc
from poolalloc import _core
from poolalloc._internal.moved import MOVED
from poolalloc._internal.statistics import DeviceStats
from poolalloc.errors import PoolallocError

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import generate_manual

RENAMED = {
    "poolalloc": {"BinShare": "SizeClassBreakdown", "Share": "MemoryBreakdown"},
    "poolalloc.memory": {"BinShare": "SizeClassBreakdown", "Share": "MemoryBreakdown"},
    "poolalloc.analysis.live_blocks": {
        "LiveSet": "LiveBlocks",
        "Share": "BlockGroup",
        "largest_live_set": "peak_live_blocks",
        "live_set": "live_blocks",
    },
    "poolalloc.analysis.baselines": {"AgainstError": "BaselineError"},
    "poolalloc.analysis.block_reuse": {"Reuse": "BlockReuse"},
    "poolalloc.analysis.plan": {"Found": "StreamFindings"},
    "poolalloc.analysis.trace.import_report": {"Report": "ImportReport"},
}


def test_the_reference_lists_every_public_name() -> None:
    assert generate_manual.main(["--check"]) == 0


def test_a_reference_that_lacks_a_name_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_manual, "ROOT", tmp_path)
    text = generate_manual.REFERENCE.read_text().replace("| `MemoryBreakdown` |", "| `Share` |")
    monkeypatch.setattr(generate_manual, "REFERENCE", tmp_path / "reference.md")
    monkeypatch.setattr(generate_manual, "reference", lambda: text.replace("| `Share` |", "| `MemoryBreakdown` |"))
    generate_manual.REFERENCE.write_text(text)
    assert generate_manual.main(["--check"]) == 1
    assert "reference.md does not follow the code" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in generate_manual.public_modules() if name != "poolalloc.auto"])
def test_what_a_module_calls_public_is_there(name: str) -> None:
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [public for public in module.__all__ if not hasattr(module, public)] == []


def test_old_paths_give_the_modules_in_their_new_places_and_warn_once() -> None:
    for old, new in MOVED.items():
        sys.modules.pop(f"poolalloc.{old}", None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            first = importlib.import_module(f"poolalloc.{old}")
            again = importlib.import_module(f"poolalloc.{old}")
        ours = [str(one.message) for one in caught if f"poolalloc.{old} " in str(one.message)]
        assert ours == [f"poolalloc.{old} is now poolalloc.{new}"]
        assert first is again
        now = importlib.import_module(f"poolalloc.{new}")
        names = [name for name in vars(now) if not name.startswith("_")]
        assert all(getattr(first, name) is getattr(now, name) for name in names)
        assert now.__spec__ is not None
        assert now.__spec__.name == now.__name__ == f"poolalloc.{new}"
    from poolalloc.analysis import report

    assert callable(report.growth)  # the function, though poolalloc.report.growth is a module, too


def test_an_unknown_module_stays_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"poolalloc\.nonsense"):
        importlib.import_module("poolalloc.nonsense")


def test_compare_is_a_function_before_and_after_its_old_module_was_imported() -> None:
    sys.modules.pop("poolalloc.compare", None)
    poolalloc.__dict__.pop("compare", None)
    with pytest.raises(ValueError, match="at least one way"):
        poolalloc.compare({})
    with pytest.warns(DeprecationWarning, match=r"now poolalloc\.analysis\.compare"):
        importlib.import_module("poolalloc.compare")
    with pytest.raises(ValueError, match="at least one way"):
        poolalloc.compare({})


@pytest.mark.parametrize("module", RENAMED)
def test_old_names_are_the_new_ones_and_warn(module: str) -> None:
    home = importlib.import_module(module)
    for old, new in RENAMED[module].items():
        home.__dict__.pop(old, None)
        with pytest.warns(DeprecationWarning, match=f"{old} is now poolalloc.*{new}"):
            found = getattr(home, old)
        assert found is getattr(home, new)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = home.no_such_name


def _signatures(name: str) -> Iterator[tuple[str, str]]:
    """Every annotation of what a module calls public, and of the public methods and fields of its classes."""
    module = importlib.import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        functions = {public: value}
        if inspect.isclass(value):
            functions = {f"{public}.{key}": getattr(each, "__func__", getattr(each, "fget", each))
                         for key, each in vars(value).items() if not key.startswith("_")}  # fmt: skip
            fields = inspect.get_annotations(value)
            yield from ((f"{public}.{key}", str(text)) for key, text in fields.items() if not key.startswith("_"))
        for owner, function in functions.items():
            if inspect.isfunction(function):
                yield from ((owner, str(text)) for text in function.__annotations__.values())


READS_JSON = ("from_json", "DeviceResult.stats")
"""What takes or keeps values as they stand in a file, or as the native module gives them."""


@pytest.mark.parametrize("name", [name for name in generate_manual.public_modules() if name != "poolalloc.auto"])
def test_no_public_signature_says_any(name: str) -> None:
    arrays = re.compile(r"(NDArray|np\.dtype)\[Any\]")
    found = [
        (owner, text)
        for owner, text in _signatures(name)
        if re.search(r"\bAny\b", arrays.sub("", text)) and not owner.endswith(READS_JSON)
    ]
    assert found == []


def _kind(type_: object) -> type | None:
    """The TypedDict that a field of one holds, alone or in a list; None for plain values."""
    arguments = get_args(type_)
    inner = arguments[0] if get_origin(type_) is list else type_
    return inner if is_typeddict(inner) else None


def _agrees(stats: dict[str, Any], kind: type) -> None:
    hints = get_type_hints(kind)
    assert set(stats) == set(hints)
    for name, type_ in hints.items():
        if (inner := _kind(type_)) is not None:
            for one in stats[name] if isinstance(stats[name], list) else [stats[name]]:
                _agrees(one, inner)


def test_statistics_are_of_the_type_that_says_so() -> None:
    engine = _core.Engine("")
    engine.allocate(1000)
    stats = engine.stats()
    assert stats["heaps"][0]["bins"]
    _agrees(stats, DeviceStats)


def test_every_exception_derives_from_poolalloc_error() -> None:
    found = set()
    for info in pkgutil.walk_packages(poolalloc.__path__, "poolalloc."):
        if info.name.endswith((".auto", ".__main__", ".sitecustomize", "libpoolalloc")):  # they act when imported
            continue
        module = importlib.import_module(info.name)
        found |= {
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Exception) and value.__module__.startswith("poolalloc")
        }
    assert len(found) > 15
    assert [each for each in found if not issubclass(each, PoolallocError)] == []
    assert [each for each in found if each is not PoolallocError and len(each.__mro__) < 5] == []  # and a base besides
