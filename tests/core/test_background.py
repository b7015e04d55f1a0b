"""Memory created ahead, and the thread that creates some and gives some back."""

import os
import signal
import time
from collections.abc import Callable

import pytest
from engines import MIB, PAGE, calls, engine_of, sound

from poolalloc import _core, errors

PATIENCE = 60.0  # seconds for what takes milliseconds


def soon(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def looked(engine: _core.Engine, times: int = 3) -> None:
    """Wait until the thread has looked after the engine so many times from beginning to end."""
    begun = engine.caretaker_rounds()
    soon(lambda: engine.caretaker_rounds() > begun + times)  # one look may have begun before


def spare(engine: _core.Engine) -> int:
    return engine.stats()["unmapped"]


# --- prealloc --------------------------------------------------------------------------------------------------------


def test_memory_asked_for_ahead_is_there_at_the_first_use_and_growth_makes_none() -> None:
    engine = engine_of(64, conf=f"prealloc:{40 * PAGE}")
    assert engine.used_bytes() == 0, "nothing before the device is used"
    block = engine.allocate(1000)
    assert engine.used_bytes() == 40 * PAGE
    created = calls(engine, "create")
    for stream in (1, 2, 3):
        engine.allocate(13 * PAGE, stream=stream)
    assert calls(engine, "create") == created
    engine.allocate(2 * PAGE)
    assert calls(engine, "create") > created
    engine.free(block)
    sound(engine)


def test_part_of_a_page_is_a_page() -> None:
    engine = engine_of(64, conf=f"prealloc:{PAGE + 1}")
    engine.allocate(1)
    assert engine.used_bytes() == 2 * PAGE


@pytest.mark.parametrize("conf", ["prealloc:16 MiB", "prealloc:6 MiB,memory_fraction:0.5"])
def test_what_cannot_be_had_is_said_and_nothing_is_kept(conf: str) -> None:
    engine = engine_of(5, conf=conf)
    for _ in range(2):
        with pytest.raises(errors.OutOfMemoryError, match="prealloc"):
            engine.allocate(1)
        assert engine.used_bytes() == 0


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ("prealloc:10 MiB,memory_limit:8 MiB", ["prealloc", "10 MiB", "memory_limit, 8 MiB"]),
        ("trim_low:1 MiB", ["trim_low", "1 MiB", "trim_high, 0 B"]),
        ("trim_high:1 MiB,trim_low:2 MiB", ["trim_low", "2 MiB", "trim_high, 1 MiB"]),
        ("trim_after:-1", ["trim_after", "out of range"]),
    ],
)
def test_contradictions_are_refused(conf: str, words: list[str]) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        _core.parse_options(conf)
    assert all(word in str(caught.value) for word in words), caught.value


# --- the thread ------------------------------------------------------------------------------------------------------


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_there_is_no_thread_unless_an_option_asks_for_it_and_it_ends_with_its_allocator() -> None:
    before = threads()
    plain = engine_of(64, conf="prealloc:2 MiB")
    plain.allocate(1)
    assert threads() == before
    engine = engine_of(64, conf="reserve_ahead:8 MiB")
    assert threads() == before, "nor before a device is used"
    engine.allocate(1)
    assert threads() == before + 1
    del engine
    assert threads() == before


def test_a_reserve_is_made_and_made_again_within_the_limit() -> None:
    engine = engine_of(64, conf=f"reserve_ahead:{8 * PAGE}")
    for _ in range(4):
        engine.allocate(5 * PAGE)
        soon(lambda: spare(engine) == 8 * PAGE)
    engine.set_memory_limit(26 * PAGE)
    soon(lambda: spare(engine) <= 6 * PAGE)
    engine.allocate(6 * PAGE)
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(PAGE)
    assert engine.used_bytes() == 26 * PAGE
    sound(engine)


def test_a_device_that_is_full_has_no_reserve_and_nobody_runs_out_for_it() -> None:
    engine = engine_of(16, conf=f"reserve_ahead:{8 * PAGE}")
    blocks = [engine.allocate(PAGE) for _ in range(16)]
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(PAGE)
    for block in blocks:
        engine.free(block)
    assert engine.allocate(16 * PAGE)
    sound(engine)


def test_too_much_idle_memory_goes_down_to_the_low_mark() -> None:
    engine = engine_of(64, conf=f"trim_high:{10 * PAGE},trim_low:{4 * PAGE}")
    kept = engine.allocate(3 * PAGE)
    engine.free(engine.allocate(10 * PAGE))
    looked(engine)
    assert engine.used_bytes() == 13 * PAGE, "not above the mark"
    engine.free(engine.allocate(20 * PAGE, stream=2))
    soon(lambda: engine.used_bytes() == 7 * PAGE)
    assert engine.stats()["idle"]["current"] == 4 * PAGE
    engine.free(kept)
    sound(engine)


def test_the_thread_never_goes_below_what_was_allocated_ahead() -> None:
    conf = f"prealloc:{20 * PAGE},trim_high:{2 * PAGE},trim_after:0.02"
    engine = engine_of(64, conf=conf)
    engine.free(engine.allocate(30 * PAGE))
    soon(lambda: engine.used_bytes() == 20 * PAGE)
    looked(engine)
    assert engine.used_bytes() == 20 * PAGE
    sound(engine)


def test_what_has_been_idle_for_long_goes_and_what_is_used_stays() -> None:
    engine = engine_of(64, conf="trim_after:0.05")
    engine.free(engine.allocate(20 * PAGE))
    busy = engine.allocate(5 * PAGE)
    soon(lambda: engine.used_bytes() == 5 * PAGE)
    engine.free(busy)
    soon(lambda: engine.used_bytes() == 0)
    sound(engine)


def test_spare_pages_grow_old_as_well() -> None:
    engine = engine_of(32, conf="trim_after:0.05")
    engine.free(engine.allocate(30 * PAGE, stream=1))
    engine.allocate(4 * PAGE, stream=2)  # takes a little more than it needs
    soon(lambda: engine.used_bytes() == 4 * PAGE)
    sound(engine)


def test_what_exact_bins_keep_and_nobody_asks_for_goes_but_for_what_was_made_ahead() -> None:
    size = 3 * PAGE
    engine = engine_of(64, conf="exact_bins:6MiB/2/8,trim_after:0.05,bin_limit:0")
    blocks = [engine.allocate(size) for _ in range(6)]
    for block in blocks:
        engine.free(block)
    soon(lambda: engine.used_bytes() == 2 * size)
    assert engine.stats()["kept"]["current"] == 2 * size
    assert engine.stats()["kept_released"] == 4
    sound(engine)


def test_what_exact_bins_keep_is_not_idle() -> None:
    engine = engine_of(64, conf="exact_bins:6MiB/0/8,trim_high:2 MiB,bin_limit:0")
    blocks = [engine.allocate(3 * PAGE) for _ in range(6)]
    for block in [*blocks, engine.allocate(10 * PAGE)]:
        engine.free(block)
    soon(lambda: engine.used_bytes() == 18 * PAGE)
    looked(engine)
    assert engine.stats()["kept"]["current"] == engine.used_bytes() == 18 * PAGE
    sound(engine)


def test_the_thread_takes_nothing_that_the_device_may_still_use() -> None:
    engine = engine_of(64, conf="trim_after:0.02,trim_high:2 MiB", event_lag=10)
    engine.free(engine.allocate(20 * PAGE))
    looked(engine, 10)  # the memory is idle for longer than trim_after
    assert engine.used_bytes() == 20 * PAGE
    assert engine.now() == 1, "nor does it wait"

    def gone() -> bool:
        engine.advance(10)
        return engine.used_bytes() == 0

    soon(gone)
    sound(engine)


def test_the_thread_leaves_a_capture_alone() -> None:
    engine = engine_of(64, conf="trim_after:0.01,trim_high:2 MiB,reserve_ahead:4 MiB")
    engine.free(engine.allocate(20 * PAGE))
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(7)
    engine.allocate(MIB, stream=7)
    looked(engine, 10)
    assert engine.violations() == 0, engine.first_violation()
    engine.end_capture(7)
    engine.end_allocate_to_pool(0, (1, 0))
    soon(lambda: engine.used_bytes() <= 3 * PAGE)
    sound(engine)


def test_a_child_of_fork_does_without_the_thread() -> None:
    """Whatever the thread was about when the process forked: it may hold a lock."""
    engine = engine_of(64, conf="reserve_ahead:8 MiB,trim_after:0.001")
    for _ in range(40):
        engine.free(engine.allocate(4 * PAGE))
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(30)  # rather than wait for ever
                del engine
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    soon(lambda: spare(engine) == 8 * MIB)
    sound(engine)
