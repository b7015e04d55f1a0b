"""Callbacks that are asked for memory: when, in which order, how often, and what they may do."""

import threading

import pytest
from engines import PAGE, engine_of, sound

from poolalloc import _core, errors


class Cache:
    """Blocks that can be done without; gives back one block each time it is asked."""

    def __init__(self, engine: _core.Engine, blocks: int, pages: int = 1, stream: int = 0) -> None:
        self.engine = engine
        self.blocks = [engine.allocate(pages * PAGE, stream=stream) for _ in range(blocks)]
        self.asked: list[tuple[int, int]] = []

    def __call__(self, device: int, size: int) -> bool:
        self.asked.append((device, size))
        if self.blocks:
            self.engine.free(self.blocks.pop())
            return True
        return False


def test_it_hears_device_and_bytes_and_the_request_is_served() -> None:
    engine = engine_of(8, devices=2)
    cache = Cache(engine, 8)
    engine.free(engine.allocate(PAGE, device=1))
    engine.on_oom(cache)
    assert engine.allocate(PAGE - 100)
    assert cache.asked == [(0, PAGE - 100)]
    stats = engine.stats()
    assert (stats["callbacks"], stats["after_callbacks"], stats["retries"]) == (1, 1, 1)
    sound(engine)


def test_it_is_not_called_where_idle_memory_does() -> None:
    engine = engine_of(8)
    engine.on_oom(lambda *_: pytest.fail("called"))
    engine.set_stream_lag(2, 0)
    engine.free(engine.allocate(8 * PAGE, stream=2))
    assert engine.allocate(8 * PAGE, stream=1)


def test_it_is_called_again_as_long_as_it_frees() -> None:
    engine = engine_of(8)
    cache = Cache(engine, 8)
    engine.on_oom(cache)
    assert engine.allocate(5 * PAGE)
    assert len(cache.asked) == 5, "once a block, and no more"
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(4 * PAGE)
    assert len(cache.asked) == 5 + 3 + 1, "until it says no"
    sound(engine)


def test_one_that_claims_to_have_freed_is_not_called_for_ever() -> None:
    engine = engine_of(8)
    engine.allocate(8 * PAGE)
    calls = []
    engine.on_oom(lambda *_: calls.append(1) or True)
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(PAGE)
    assert len(calls) == 1


def test_what_it_frees_counts_whatever_it_returns() -> None:
    engine = engine_of(8)
    block = engine.allocate(8 * PAGE)
    engine.on_oom(lambda *_: engine.free(block))
    assert engine.allocate(8 * PAGE)


def test_they_run_in_order_and_only_as_many_as_it_takes() -> None:
    engine = engine_of(8)
    order = []
    block = engine.allocate(8 * PAGE)
    engine.on_oom(lambda *_: order.append("nothing"))
    engine.on_oom(lambda *_: order.append("frees") or engine.free(block))
    engine.on_oom(lambda *_: order.append("too many"))
    assert engine.allocate(PAGE)
    assert order == ["nothing", "frees"]


def test_memory_freed_on_another_stream_is_taken_from_there() -> None:
    engine = engine_of(8)
    cache = Cache(engine, 1, pages=8, stream=9)
    engine.on_oom(cache)
    assert engine.allocate(6 * PAGE, stream=4)
    stats = engine.stats()
    assert (stats["after_callbacks"], stats["pages_stolen"]) == (1, 8)
    sound(engine)


def test_it_may_allocate_free_trim_and_ask() -> None:
    engine = engine_of(8)
    held = [engine.allocate(PAGE) for _ in range(8)]

    def callback(device: int, size: int) -> None:
        engine.free(held.pop())
        block = engine.allocate(1000, stream=5)
        engine.trim(0, device, True)
        engine.empty_cache()
        assert engine.stats(device)["live_blocks"] == 8
        engine.set_memory_limit(8 * PAGE)
        engine.begin_allocate_to_pool(0, (1, 0), [7])
        engine.end_allocate_to_pool(0, (1, 0))
        engine.release_pool(0, (1, 0))
        engine.validate()
        engine.free(block)

    engine.on_oom(callback)
    assert engine.allocate(PAGE)
    sound(engine)


def test_its_own_requests_call_nobody() -> None:
    engine = engine_of(8)
    engine.allocate(8 * PAGE)
    calls = []

    def callback(device: int, size: int) -> None:
        calls.append(size)
        with pytest.raises(errors.OutOfMemoryError):
            engine.allocate(2 * PAGE)

    engine.on_oom(callback)
    with pytest.raises(errors.OutOfMemoryError) as caught:
        engine.allocate(PAGE)
    assert "asked for 2 MiB" in str(caught.value)
    assert calls == [PAGE]


def test_an_exception_is_reported_and_the_request_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(8)
    block = engine.allocate(8 * PAGE)
    seen = []
    monkeypatch.setattr("sys.unraisablehook", lambda report: seen.append((report.exc_value, report.object)))

    def broken(device: int, size: int) -> None:
        raise KeyError("cache")

    engine.on_oom(broken)
    with pytest.raises(errors.OutOfMemoryError, match="asked for 2 MiB"):
        engine.allocate(PAGE)
    assert [(type(error), owner) for error, owner in seen] == [(KeyError, broken)]
    engine.on_oom(lambda *_: engine.free(block))
    assert engine.allocate(PAGE), "those after it are called all the same"
    sound(engine)


def test_one_that_was_removed_is_not_called() -> None:
    engine = engine_of(8)
    cache = Cache(engine, 8)
    name = engine.on_oom(cache)
    assert engine.remove_on_oom(name)
    assert not engine.remove_on_oom(name)
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(PAGE)
    assert cache.asked == []


def test_one_may_remove_itself() -> None:
    engine = engine_of(8)
    cache = Cache(engine, 8)
    names = []

    def once(device: int, size: int) -> bool:
        engine.remove_on_oom(names.pop())
        return cache(device, size)

    names.append(engine.on_oom(once))
    assert engine.allocate(PAGE)
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(PAGE)
    assert len(cache.asked) == 1


def test_other_threads_allocate_and_call_while_one_is_inside() -> None:
    engine = engine_of(8)
    small = engine.allocate(1000, stream=2)
    block = engine.allocate(7 * PAGE)
    inside, go_on = threading.Event(), threading.Event()

    def callback(device: int, size: int) -> None:
        if size == 2 * PAGE:
            inside.set()
            assert go_on.wait(30)
            engine.free(block)

    engine.on_oom(callback)
    served = []
    thread = threading.Thread(target=lambda: served.append(engine.allocate(2 * PAGE)))
    thread.start()
    assert inside.wait(30)
    engine.free(engine.allocate(500, stream=2))
    with pytest.raises(errors.OutOfMemoryError):  # a whole ladder, beside the other's
        engine.allocate(3 * PAGE, stream=2)
    go_on.set()
    thread.join(30)
    assert served
    assert served[0]
    engine.free(small)
    sound(engine)


def test_an_error_handled_inside_does_not_replace_the_callers() -> None:
    engine = engine_of(8)
    block = engine.allocate(8 * PAGE)

    def callback(device: int, size: int) -> None:
        with pytest.raises(ValueError, match="inside"):
            raise ValueError("inside")
        engine.free(block)

    engine.on_oom(callback)

    def request() -> None:
        try:
            raise RuntimeError("outside")
        except RuntimeError:
            assert engine.allocate(PAGE)
            raise

    with pytest.raises(RuntimeError, match="outside"):
        request()


def test_during_a_capture_it_is_called_and_nothing_forbidden_happens() -> None:
    engine = engine_of(8)
    block = engine.allocate(4 * PAGE, stream=3)
    calls = []
    engine.on_oom(lambda *_: calls.append(1) or engine.free(block))
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(7)
    engine.allocate(4 * PAGE, stream=7)
    with pytest.raises(errors.OutOfMemoryError):  # what stream 3 left cannot be unmapped now
        engine.allocate(PAGE, stream=7)
    assert calls == [1]
    sound(engine)
    engine.end_capture(7)
    engine.end_allocate_to_pool(0, (1, 0))
    assert engine.allocate(PAGE, stream=7)
