"""poolalloc._core: the stub file says what the module has, errors become Python's, and figures add up."""

import ast
import inspect
import math
import re
from pathlib import Path

import pytest
from engines import capture_into

from poolalloc import _core, errors
from poolalloc.memory import fragmentation_of, summary_of

MiB = 2**20
STUB = Path(_core.__file__).parent / "_core.pyi"


# --- the stub and the module -----------------------------------------------------------------------------------------


def parameters_of_stub(node: ast.FunctionDef) -> list[tuple[str, bool]]:
    """Name and whether there is a default, for each parameter but self."""
    names = [argument.arg for argument in node.args.args]
    defaults = [False] * (len(names) - len(node.args.defaults)) + [True] * len(node.args.defaults)
    return [(name, default) for name, default in zip(names, defaults, strict=True) if name != "self"]


def parameters_of_module(function: object) -> list[tuple[str, bool]]:
    """The same from the signature that pybind11 writes on the first line of the docstring."""
    signature = str(function.__doc__).splitlines()[0]
    inner = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    depth, parts = 0, [""]
    for character in inner:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    found = [re.match(r"\s*(\w+)\s*(?::[^=]*)?(=.*)?$", part) for part in parts if part.strip()]
    return [(match[1], match[2] is not None) for match in found if match[1] != "self"]


def stub_functions(body: list[ast.stmt]) -> dict[str, list[tuple[str, bool]]]:
    return {node.name: parameters_of_stub(node) for node in body if isinstance(node, ast.FunctionDef)}


def module_functions(owner: object) -> dict[str, list[tuple[str, bool]]]:
    members = {name: value for name, value in vars(owner).items() if not name.startswith("_") or name == "__init__"}
    return {name: parameters_of_module(value) for name, value in members.items() if inspect.isroutine(value)}


def test_stub_has_the_functions_of_the_module() -> None:
    tree = ast.parse(STUB.read_text())
    assert stub_functions(tree.body) == module_functions(_core)


@pytest.mark.parametrize("name", ["Engine", "Replay"])
def test_stub_has_the_methods_of_the_classes(name) -> None:
    classes = {node.name: node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)}
    assert set(classes) == {member for member, value in vars(_core).items() if inspect.isclass(value)}
    assert stub_functions(classes[name].body) == module_functions(getattr(_core, name))


def test_stub_has_the_constants_of_the_module() -> None:
    declared = {node.target.id for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.AnnAssign)}
    constants = {name for name, value in vars(_core).items() if isinstance(value, (int, str))}
    assert declared == {name for name in constants if not name.startswith("_")}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda engine: engine.free(12345), errors.UsageError, "not the start of a live block"),
        (lambda engine: engine.allocate(1, device=3), errors.UsageError, "no device 3"),
        (lambda engine: engine.allocate(1, device=-1), errors.UsageError, "no device -1"),
        (lambda engine: engine.allocate(2**40), errors.OutOfMemoryError, "asked for 1 TiB"),
        (lambda engine: engine.allocate(2**64 - 1), errors.OutOfMemoryError, "asked for"),
        (lambda engine: engine.set_memory_fraction(-0.1), errors.UsageError, "fraction"),
        (lambda engine: engine.release_pool(0, (1, 2)), errors.UsageError, "pool"),
        (lambda engine: engine.fail("no_such_call"), errors.UsageError, "reserve"),
        (lambda engine: engine.fail("create", 1, "perhaps"), errors.UsageError, "out_of_memory"),
        (lambda engine: _core.Engine("bin_limt:1"), errors.ConfigError, "bin_limit"),
        (lambda engine: _core.Engine("", {"memory": 1}), errors.ConfigError, "memory_bytes"),
        (lambda engine: _core.parse_options("bin_limit:-1"), errors.ConfigError, "bin_limit"),
        (lambda engine: _core.parse_bytes("-1 MiB"), errors.ConfigError, "-1 MiB"),
        (lambda engine: _core.bin_of(0), ValueError, "allowed"),
        (lambda engine: _core.bin_bytes(_core.BINS), ValueError, "allowed"),
    ],
)
def test_errors_are_those_of_the_package(call, error, text) -> None:
    with pytest.raises(error, match=text):
        call(_core.Engine("", {"memory_bytes": 64 * MiB}))


def test_a_driver_that_refuses_is_a_driver_error_and_changes_nothing() -> None:
    engine = _core.Engine("", {"memory_bytes": 64 * MiB})
    engine.allocate(1)
    before = engine.stats()["reserved"]
    engine.fail("create", 1, "failed")
    with pytest.raises(errors.DriverError):
        engine.allocate(8 * MiB)
    assert engine.stats()["reserved"] == before
    engine.validate()
    assert engine.allocate(8 * MiB) != 0


def test_negative_sizes_never_reach_the_allocator() -> None:
    with pytest.raises(TypeError):
        _core.Engine().allocate(-1)


# --- options and sizes -----------------------------------------------------------------------------------------------


def test_the_table_and_the_options_have_the_same_names_and_defaults() -> None:
    table = {row["name"]: row for row in _core.option_table()}
    options = _core.parse_options("")
    assert list(table) == list(options)
    for name, value in options.items():
        assert table[name]["default"] == value
        assert type(table[name]["default"]) is type(value)
        if table[name]["type"] == "choice":
            assert value in table[name]["unit"].split(" | ")
        elif table[name]["type"] == "text":
            assert value == ""
        elif table[name]["type"] == "bins":
            assert value == ()
        else:
            assert table[name]["minimum"] <= value <= table[name]["maximum"]


def test_an_engine_has_the_options_it_was_given() -> None:
    assert _core.Engine("bin_limit:64 KiB").options()["bin_limit"] == 64 * 2**10


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1536, 2**20, 2**30 * 3, 2**40])
def test_sizes_survive_being_written_and_read(size) -> None:
    text = _core.format_bytes(size)
    assert math.isclose(_core.parse_bytes(text), size, rel_tol=0.005)


# --- statistics ------------------------------------------------------------------------------------------------------


def busy_engine() -> _core.Engine:
    """Two streams, a pool, pending frees, holes and idle pages."""
    engine = _core.Engine("", {"memory_bytes": 512 * MiB, "event_lag": 10})
    blocks = [engine.allocate(size, 0, stream) for stream in (0, 7) for size in (100, 5000, 300_000, 3 * MiB) * 9]
    for block in blocks[::3]:
        engine.free(block)
    for block in blocks[1::6]:
        engine.record_stream(block, 99)
        engine.free(block)
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.allocate(MiB, 0, 7)
    engine.end_allocate_to_pool(0, (1, 0))
    engine.free(engine.allocate(40 * MiB))
    return engine


def test_every_reserved_byte_is_somewhere() -> None:
    engine = busy_engine()
    stats = engine.stats()
    where = fragmentation_of(stats)
    assert where.total.reserved == stats["reserved"]["current"] == engine.used_bytes()
    assert where.total.requested == stats["requested"]["current"]
    assert where.total.pending == stats["pending"]["current"] > 0
    assert min(where.total.rounding, where.total.half_empty, where.total.idle) > 0
    for part in ("requested", "rounding", "pending", "kept", "half_empty", "idle", "idle_in_pools"):
        assert all(getattr(share, part) >= 0 for share in where.heaps.values())
        spare = where.unmapped if part == "idle" else 0
        for groups in (where.heaps, where.streams, where.pools):
            assert sum(getattr(share, part) for share in groups.values()) + spare == getattr(where.total, part)
    assert sum(row.resident for row in where.bins) + where.uncut == stats["resident"]["current"]
    assert all(row.half_empty >= 0 for row in where.bins)
    assert sum(row.live_blocks for row in where.bins) == stats["live_blocks"]
    assert set(where.pools) == {(0, 0), (1, 0)}
    engine.validate()


def test_fragmentation_prints_and_goes_to_plain_values() -> None:
    where = fragmentation_of(busy_engine().stats())
    text = str(where)
    for word in ("requested", "rounding", "pending", "half-empty", "idle", "arena", "ordinary", "1,0"):
        assert word in text
    plain = where.to_dict()
    parts = ("requested", "rounding", "pending", "kept", "half_empty", "idle", "idle_in_pools")
    assert plain["reserved"] == sum(plain[part] for part in parts)
    assert len(plain["heaps"]) == 3
    assert {row["stream"] for row in plain["streams"]} == {0, 7}


def test_the_summary_shows_every_quantity_event_and_call() -> None:
    stats = busy_engine().stats()
    text = summary_of(stats)
    events = [name for name, value in stats.items() if isinstance(value, int)]
    for name in ("requested", "live", "pending", "resident", "idle", "reserved", *stats["driver_calls"]):
        assert re.search(rf"^{name} +", text, re.MULTILINE), name
    no_events = {
        "device",
        "total_bytes",
        "limit_bytes",
        "live_blocks",
        "metadata_bytes",
        "unmapped",
        "idle_in_pools",
        "asleep",
        "asleep_host",
        "asleep_file",
        "virtual_memory",
    }
    for name in set(events) - no_events:
        assert re.search(rf"^{name} +{stats[name]:,} ", text, re.MULTILINE), name
    assert f"{stats['reserved']['peak'] / stats['requested']['peak']:.4f}" in text
    assert "512 MiB" in text.splitlines()[0]
    assert "pages, mapped where they are needed" in text


def test_an_unused_device_has_nothing_anywhere() -> None:
    assert "requested)  -" in summary_of(_core.Engine().stats())
    where = fragmentation_of(_core.Engine().stats())
    assert where.total.reserved == 0
    assert "0 B reserved" in str(where)


def test_the_model_shows_what_lies_under_an_address() -> None:
    engine = _core.Engine("", {"memory_bytes": 64 * MiB})
    block = engine.allocate(3 * MiB)
    assert engine.base_allocation(block + 5) == (block, 3 * MiB)
    assert engine.owns(block)
    assert not engine.owns(0)
    assert engine.base_allocation(1) is None
    handle, offset = engine.physical(block)
    assert engine.physical(block + 4096) == (handle, offset + 4096)
    engine.free(block)
    assert engine.empty_cache() == 4 * MiB
    assert engine.used_bytes() == 0
    assert engine.physical(block) is None
    assert engine.violations() == 0


def test_the_plugin_is_untouched_by_engines() -> None:
    _core.Engine().allocate(1)
    state = _core.plugin_state()
    assert not state["used"]
    assert set(state["hook_calls"]) == set(_core.hook_addresses())
    assert len(set(_core.hook_addresses().values())) == 8
    assert Path(_core.library_path()).name == "libpoolalloc.so"


# --- private pools ---------------------------------------------------------------------------------------------------


def pool_reserved(engine: _core.Engine, pool: tuple[int, int]) -> int:
    shares = fragmentation_of(engine.stats()).pools
    return shares[pool].reserved if pool in shares else 0


def fill_pool(engine: _core.Engine, pool: tuple[int, int], size: int) -> None:
    """What a captured graph leaves: memory it has used and freed, which its replays will use again."""
    with capture_into(engine, pool, 7):
        engine.free(engine.allocate(size, stream=7))


def test_a_pool_in_use_keeps_its_idle_memory() -> None:
    engine = _core.Engine("", {"memory_bytes": 64 * MiB})
    fill_pool(engine, (1, 0), 20 * MiB)
    engine.free(engine.allocate(10 * MiB))
    engine.empty_cache()
    assert pool_reserved(engine, (1, 0)) == engine.used_bytes() == 20 * MiB
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(50 * MiB)  # would fit only on top of the pool's
    assert pool_reserved(engine, (1, 0)) == 20 * MiB
    engine.release_pool(0, (1, 0))
    engine.allocate(50 * MiB)
    engine.validate()


def test_a_pool_lives_until_its_last_user_lets_go() -> None:
    # Two graphs share a pool: torch begins twice, and releases once for each graph that dies.
    engine = _core.Engine("", {"memory_bytes": 64 * MiB})
    fill_pool(engine, (1, 0), 20 * MiB)
    fill_pool(engine, (1, 0), 20 * MiB)
    engine.release_pool(0, (1, 0))
    engine.empty_cache()
    assert pool_reserved(engine, (1, 0)) == 20 * MiB
    engine.release_pool(0, (1, 0))
    engine.empty_cache()
    assert pool_reserved(engine, (1, 0)) == engine.used_bytes() == 0
    with pytest.raises(errors.UsageError, match="pool"):
        engine.release_pool(0, (1, 0))


def test_a_released_pool_goes_when_its_last_block_is_freed() -> None:
    engine = _core.Engine("", {"memory_bytes": 64 * MiB})
    engine.begin_allocate_to_pool(0, (1, 0))
    block = engine.allocate(20 * MiB)
    engine.end_allocate_to_pool(0, (1, 0))
    engine.release_pool(0, (1, 0))
    assert pool_reserved(engine, (1, 0)) == 20 * MiB
    engine.free(block)
    engine.empty_cache()
    assert engine.used_bytes() == 0
    assert (1, 0) not in fragmentation_of(engine.stats()).pools
    engine.validate()


def test_only_the_streams_of_the_filter_go_to_the_pool() -> None:
    engine = _core.Engine("", {"memory_bytes": 64 * MiB})
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.allocate(4 * MiB, stream=7)
    engine.allocate(6 * MiB, stream=8)
    with pytest.raises(errors.UsageError, match="pool"):
        engine.begin_allocate_to_pool(0, (1, 0))
    engine.end_allocate_to_pool(0, (1, 0))
    engine.allocate(8 * MiB, stream=7)
    assert set(fragmentation_of(engine.stats()).heaps) == {(7, (1, 0)), (8, (0, 0)), (7, (0, 0))}
    assert pool_reserved(engine, (1, 0)) == 4 * MiB
    with pytest.raises(errors.UsageError, match="pool"):
        engine.end_allocate_to_pool(0, (1, 0))
