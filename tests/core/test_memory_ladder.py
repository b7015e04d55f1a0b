"""When memory runs out: each step of the ladder in its turn, what the error says, and what it leaves."""

import re
from contextlib import nullcontext

import pytest
from engines import GIB, KIB, MIB, PAGE, capture_into, engine_of, handles, sound

from poolalloc import _core, errors
from poolalloc.memory import fragmentation_of

RUNGS = ("unmapping", "stealing", "callbacks", "waiting", "trimming", "lending")
EVENTS = (
    "retries",
    *(f"after_{rung}" for rung in RUNGS),
    "callbacks",
    "pages_stolen",
    "pending_completed",
    "pages_created",
    "out_of_memory",
)


def refused(engine: _core.Engine, size: int, **where: int) -> str:
    with pytest.raises(errors.OutOfMemoryError) as caught:
        engine.allocate(size, **where)
    sound(engine)
    return str(caught.value)


class Steps:
    """What the ladder did since the last look: events counted, and whether time had to pass."""

    def __init__(self, engine: _core.Engine) -> None:
        self.engine = engine
        self.before = engine.stats()
        self.time = engine.now()

    def taken(self) -> dict[str, int]:
        now = self.engine.stats()
        counts = {event: now[event] - self.before[event] for event in EVENTS}
        counts["waited"] = self.engine.now() - self.time
        self.before, self.time = now, self.engine.now()
        return {event: count for event, count in counts.items() if count}


# --- the ladder, rung by rung -----------------------------------------------------------------------------------------

STREAM, OTHER, SLOW, QUICK, FILLER, POOL = 1, 2, 3, 4, 5, 6
SIZE = 4 * PAGE
FOREVER = 10**9


class Sources:
    """A full device on which each of these has SIZE bytes for a request on STREAM, and nothing else has any."""

    def __init__(self, *names: str) -> None:
        self.engine = engine = engine_of(4 * len(names) + 1, event_lag=10)
        engine.set_stream_lag(OTHER, 0)
        engine.set_stream_lag(SLOW, 500)
        streams = {"other streams": OTHER, "lending": POOL}
        blocks = {}
        for name in names:
            with capture_into(engine, (1, 0), POOL) if name == "lending" else nullcontext():
                if name != "trimming":
                    blocks[name] = engine.allocate(SIZE, stream=streams.get(name, STREAM))
        if "lending" in names:
            engine.set_pool_use_on_oom(0, (1, 0), True)
        engine.allocate(PAGE, stream=FILLER)
        self.cache = [blocks["callbacks"]] if "callbacks" in names else []
        if "callbacks" in names:
            engine.on_oom(self.drop)
        for name, stream in (("completed", QUICK), ("waiting", SLOW)):
            if name in names:
                engine.record_stream(blocks[name], stream)
        for name, block in blocks.items():
            if name != "callbacks":
                engine.free(block)
        self.steps = Steps(engine)
        engine.advance(100)  # the quick stream is done, the slow one is not; nobody has looked since
        self.steps.time = engine.now()
        if "trimming" in names:  # another process holds that memory for a moment
            engine.fail("create", 1, "out_of_memory")

    def drop(self, device: int, size: int) -> None:
        assert (device, size) == (0, SIZE)
        while self.cache:
            self.engine.free(self.cache.pop())

    def taken(self) -> dict[str, int]:
        """What one request made the ladder do."""
        self.engine.allocate(SIZE, stream=STREAM)
        sound(self.engine)
        return self.steps.taken()


IN_ORDER = {
    "own": {},
    "completed": {"pending_completed": 1},
    "other streams": {"pages_stolen": 4},
    "callbacks": {"retries": 1, "after_callbacks": 1, "callbacks": 1},
    "waiting": {"retries": 1, "after_waiting": 1, "pending_completed": 1, "waited": 400},
    "trimming": {"retries": 1, "after_trimming": 1, "pages_created": 4},
    "lending": {"retries": 1, "after_lending": 1, "pages_stolen": 4, "waited": 10},
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_each_rung_alone(name: str) -> None:
    assert Sources(name).taken() == IN_ORDER[name]


@pytest.mark.parametrize("name", IN_ORDER)
def test_the_first_rung_that_has_memory_serves(name: str) -> None:
    names = list(IN_ORDER)
    noticed = {"pending_completed": 1} if name == "own" else {}  # by the figures
    assert Sources(*names[names.index(name) :]).taken() == IN_ORDER[name] | noticed


def test_what_was_asked_once_is_known_the_next_time() -> None:
    engine = engine_of(16, event_lag=10)
    engine.free(engine.allocate(6 * PAGE, stream=OTHER))
    engine.allocate(10 * PAGE, stream=STREAM)
    steps = Steps(engine)
    engine.allocate(PAGE, stream=STREAM)  # waits: the other stream may still be at work
    assert steps.taken() == {"retries": 1, "after_waiting": 1, "pages_stolen": 3, "waited": 10}
    engine.allocate(5 * PAGE, stream=STREAM)
    assert steps.taken() == {"pages_stolen": 3}
    sound(engine)


def test_what_a_stream_left_after_that_is_asked_for_anew() -> None:
    engine = engine_of(16, event_lag=10)
    early, late = (engine.allocate(6 * PAGE, stream=OTHER) for _ in range(2))
    engine.allocate(4 * PAGE, stream=STREAM)
    engine.free(early)
    engine.allocate(6 * PAGE, stream=STREAM)
    engine.free(late)
    steps = Steps(engine)
    engine.allocate(6 * PAGE, stream=STREAM)
    assert steps.taken() == {"retries": 1, "after_waiting": 1, "pages_stolen": 6, "waited": 10}
    sound(engine)


def test_idle_pages_of_other_streams_come_before_frees_that_have_to_be_waited_for_longest() -> None:
    engine = engine_of(16, event_lag=10)
    engine.set_stream_lag(SLOW, 1000)
    waiting = engine.allocate(4 * PAGE, stream=OTHER)
    engine.record_stream(waiting, SLOW)
    engine.free(waiting)
    engine.free(engine.allocate(12 * PAGE, stream=OTHER))
    steps = Steps(engine)
    engine.allocate(6 * PAGE, stream=STREAM)
    taken = steps.taken()
    assert taken.pop("pages_stolen") in (6, 7, 8), "what was missing, and little more"
    assert taken == {"retries": 1, "after_waiting": 1, "waited": 10}
    assert engine.stats()["pending"]["current"] == 4 * PAGE, "nobody waited for the slow stream"


def test_the_pool_is_searched_again_after_each_wait() -> None:
    engine = engine_of(16, event_lag=10)
    engine.set_stream_lag(4, 200)
    for stream in (1, 2):
        block = engine.allocate(8 * PAGE, stream=stream)
        engine.record_stream(block, 2 + stream)
        engine.free(block)
    steps = Steps(engine)
    engine.allocate(8 * PAGE, stream=1)
    assert steps.taken() == {"retries": 1, "after_waiting": 1, "pending_completed": 1, "waited": 10}
    engine.advance(100)
    engine.allocate(8 * PAGE, stream=1)  # the other stream's
    taken = steps.taken()
    assert taken.pop("waited") == 200
    assert taken == {"retries": 1, "after_waiting": 1, "pending_completed": 1, "pages_stolen": 8}


def test_last_comes_the_error() -> None:
    engine = engine_of(16)
    engine.allocate(10 * PAGE)
    steps = Steps(engine)
    refused(engine, 7 * PAGE)
    assert steps.taken() == {"retries": 1, "out_of_memory": 1}


@pytest.mark.parametrize("call", ["create_event", "record_event", "query_event", "synchronize_event", "unmap"])
@pytest.mark.parametrize("name", ["stealing", "waiting", "lending"])
def test_a_refused_call_on_the_way_costs_no_more_than_a_later_rung(name: str, call: str) -> None:
    for nth in (1, 2, 3):
        sources = Sources(name)
        sources.engine.fail(call, nth, "failed")
        try:
            sources.engine.allocate(SIZE, stream=STREAM)
        except errors.OutOfMemoryError:
            sound(sources.engine)
            sources.engine.advance(FOREVER)
            sources.engine.empty_cache()
            sources.engine.allocate(SIZE, stream=STREAM)  # nothing is lost for good
        sound(sources.engine)


def test_blocks_scattered_over_streams_and_pools_are_all_gathered() -> None:
    engine = engine_of(32, event_lag=5)
    for stream in range(4):
        for size in (3 * PAGE, 300 * KIB, 1000):
            block = engine.allocate(size, stream=stream)
            if stream % 2:
                engine.record_stream(block, 99)
            engine.free(block)
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.free(engine.allocate(5 * PAGE, stream=7))
    engine.end_allocate_to_pool(0, (1, 0))
    engine.release_pool(0, (1, 0))
    engine.allocate(32 * PAGE, stream=50)
    assert engine.used_bytes() == 32 * PAGE
    engine.validate()


# --- what a failure leaves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [7 * PAGE, 16 * PAGE, 17 * PAGE, GIB, 1 << 40, (1 << 40) + 1, 1 << 50, 1 << 63, (1 << 64) - 1]
)
def test_a_failure_changes_nothing(size: int) -> None:
    engine = engine_of(16)
    engine.allocate(9 * PAGE)
    engine.allocate(100)
    engine.empty_cache()
    before, used = engine.stats(), engine.used_bytes()
    for stream in (0, 3):
        refused(engine, size, stream=stream)
    after = engine.stats()
    assert engine.used_bytes() == used
    for name in ("requested", "live", "pending", "resident", "reserved"):
        assert after[name]["current"] == before[name]["current"]
    assert after["live"]["peak"] == before["live"]["peak"]
    assert engine.allocate(6 * PAGE)


def test_no_page_is_made_for_what_can_never_fit() -> None:
    engine = engine_of(64)
    engine.free(engine.allocate(20 * PAGE))
    created = engine.stats()["pages_created"]
    refused(engine, 65 * PAGE)
    assert engine.stats()["pages_created"] == created
    assert engine.peak_used_bytes() == 20 * PAGE
    assert engine.used_bytes() == 20 * PAGE, "a hopeless request does not empty the cache"


def test_memory_comes_back_after_a_failure() -> None:
    engine = engine_of(16)
    block = engine.allocate(10 * PAGE)
    refused(engine, 10 * PAGE)
    engine.free(block)
    assert engine.allocate(10 * PAGE)


def test_a_driver_that_fails_for_another_reason_is_no_out_of_memory() -> None:
    engine = engine_of(16)
    engine.fail("create", 1, "failed")
    with pytest.raises(errors.DriverError, match="create"):
        engine.allocate(PAGE)
    stats = engine.stats()
    assert (stats["retries"], stats["out_of_memory"]) == (0, 0)


def test_a_capture_runs_out_without_touching_what_it_may_not() -> None:
    engine = engine_of(16, event_lag=5)
    engine.free(engine.allocate(8 * PAGE, stream=1))
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(7)
    for _ in range(4):
        engine.allocate(2 * PAGE, stream=7)
    refused(engine, PAGE, stream=7)  # stream 1's idle pages cannot be had now
    engine.end_capture(7)
    engine.end_allocate_to_pool(0, (1, 0))
    assert engine.allocate(PAGE, stream=7)


# --- what the error says ---------------------------------------------------------------------------------------------


def shown(size: int) -> str:
    return re.escape(_core.format_bytes(size))


def test_the_error_gives_every_figure() -> None:
    engine = engine_of(32, conf="memory_limit:40 MiB", event_lag=1000)
    engine.set_stream_lag(5, 10**6)
    engine.allocate(5 * PAGE + 1)
    engine.allocate(3000)
    pending = engine.allocate(2 * PAGE, stream=4)
    engine.record_stream(pending, 5)
    engine.begin_capture(9)  # so that nothing idle or pending can be had
    engine.begin_allocate_to_pool(0, (1, 0), [9])
    engine.free(pending)
    engine.free(engine.allocate(3 * PAGE, stream=4))
    text = refused(engine, 15 * PAGE + 77)
    stats = engine.stats()
    figures = {name: stats[name]["current"] for name in ("reserved", "live", "requested", "pending", "idle")}
    assert min(figures.values()) > 0
    for pattern in (
        rf"^CUDA out of memory\. Tried to allocate {(15 * PAGE + 77) / MIB:.2f} MiB\. GPU 0 has a total capacity of ",
        rf"capacity of {32 * PAGE / MIB:.2f} MiB of which {(32 * PAGE - engine.used_bytes()) / MIB:.2f} MiB is free\. ",
        f"asked for {shown(15 * PAGE + 77)}",
        f"may hold {shown(40 * MIB)} and holds {shown(figures['reserved'])}",
        f"{shown(figures['live'])} live",
        f"{shown(figures['requested'])} requested",
        f"{shown(figures['pending'])} pending",
        f"{shown(figures['idle'])} idle",
        f"{shown(figures['idle'])} cannot be moved while a CUDA graph is captured",
        f"largest block that would have fitted: about {shown(40 * MIB - figures['reserved'])}",
        f"arena on stream 0 {shown(5 * PAGE + 512)}",
        f"bin {shown(3072)} on stream 0 {shown(3072)}",
        "Try ",
        "memory_limit",
        "device 0",
    ):
        assert re.search(pattern, text), (pattern, text)


def test_more_than_an_exabyte_has_torchs_words() -> None:
    engine = engine_of()
    assert refused(engine, 1 << 60).startswith("CUDA out of memory. Tried to allocate more than 1EB memory. ")
    assert "Tried to allocate 1073741823.00 GiB. GPU 0" in refused(engine, (1 << 60) - GIB)


def test_idle_memory_that_graphs_may_touch_is_told_apart_and_not_promised() -> None:
    engine = engine_of(32)
    for pool, pages in ((1, 12), (2, 6)):
        with capture_into(engine, (pool, 0), 7):
            engine.free(engine.allocate(pages * PAGE, stream=7))
    engine.allocate(4 * PAGE)
    text = refused(engine, 20 * PAGE)
    assert f"{_core.format_bytes(18 * PAGE)} is in private pools that a CUDA graph may touch" in text
    assert f"would have fitted: about {_core.format_bytes(10 * PAGE)}." in text
    assert "deleting CUDA graphs" in text
    where = fragmentation_of(engine.stats())
    assert (where.total.idle, where.total.idle_in_pools) == (0, 18 * PAGE)
    assert where.pools[1, 0].idle_in_pools == 12 * PAGE
    assert "idle-in-pools" in str(where)
    # The pool that asks may use its own, another pool's is no use to it.
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    text = refused(engine, 23 * PAGE, stream=7)
    engine.end_allocate_to_pool(0, (1, 0))
    assert f"{_core.format_bytes(6 * PAGE)} is in private pools that a CUDA graph may touch" in text
    # A pool that lends, or that nobody uses any more, keeps nothing back.
    engine.set_pool_use_on_oom(0, (2, 0), True)
    assert engine.stats()["idle_in_pools"] == 12 * PAGE
    for _ in range(2):  # each time that requests went there made one user
        engine.release_pool(0, (1, 0))
    assert engine.stats()["idle_in_pools"] == 0
    assert "private pools" not in refused(engine, 30 * PAGE)
    assert engine.allocate(28 * PAGE)


# --- refusals that are no shortage ----------------------------------------------------------------------------------


def refuse_all(engine: _core.Engine, call: str, status: str) -> None:
    for nth in range(1, 200):
        engine.fail(call, nth, status)


@pytest.mark.parametrize("status", ["out_of_memory", "not_supported"])
@pytest.mark.parametrize("call", ["create", "map", "allow_access"])
def test_a_refusal_while_memory_is_free_is_no_shortage(call: str, status: str) -> None:
    engine = engine_of(1024)
    engine.allocate(10 * PAGE)
    refuse_all(engine, call, status)
    with pytest.raises(errors.DriverError) as caught:
        engine.allocate(20 * PAGE)
    text = str(caught.value)
    assert "the driver refused memory for 40 MiB on device 0" in text
    for misleading in ("out of memory", "smaller batch", "address_space"):
        assert misleading not in text
    if status == "out_of_memory":
        assert re.search(r"on device 0, of which [\d.]+ GiB are free: ", text)
    assert engine.stats()["out_of_memory"] == 0
    sound(engine)


def test_a_segment_that_is_not_supported_is_no_shortage_either() -> None:
    engine = engine_of(1024, virtual_memory=False)
    refuse_all(engine, "allocate_segment", "not_supported")
    with pytest.raises(errors.DriverError):
        engine.allocate(20 * PAGE)


@pytest.mark.parametrize("conf", ["", f"memory_limit:{1000 * PAGE}"])
def test_a_refusal_near_the_end_of_memory_is_a_shortage(conf: str) -> None:
    engine = engine_of(1024, conf)
    engine.allocate(990 * PAGE)
    refuse_all(engine, "create", "out_of_memory")
    assert "CUDA out of memory" in refused(engine, 20 * PAGE)


def test_memory_of_pools_is_named_among_the_holders() -> None:
    engine = engine_of(16)
    engine.begin_allocate_to_pool(0, (3, 4), [7])
    engine.allocate(5 * PAGE, stream=7)
    engine.end_allocate_to_pool(0, (3, 4))
    assert "arena on stream 7 in private pool 3,4 10 MiB" in refused(engine, 14 * PAGE)


def test_a_fraction_computed_from_bytes_allows_just_these() -> None:
    total = 79 * GIB + 345 * PAGE
    engine = _core.Engine("", {"memory_bytes": total})
    for pages in range(40000):
        engine.set_memory_fraction(pages * PAGE / total)
        assert engine.stats()["limit_bytes"] == pages * PAGE
    engine.set_memory_fraction(29 * PAGE / total)
    assert engine.allocate(29 * PAGE)
    refused(engine, PAGE)


@pytest.mark.parametrize("held", [0, 1, 7, 15])
def test_the_block_said_to_fit_does_fit_and_the_next_page_does_not(held: int) -> None:
    engine = engine_of(16)
    if held:
        engine.allocate(held * PAGE)
    engine.free(engine.allocate(PAGE, stream=1))
    text = refused(engine, 16 * PAGE + 1)
    fits = _core.parse_bytes(re.search(r"would have fitted: about ([\d.]+ \w+)\.", text)[1])
    assert fits == (16 - held) * PAGE
    refused(engine, fits + PAGE)
    assert engine.allocate(fits)


def test_the_largest_holders_come_first() -> None:
    engine = engine_of(16)
    for size, count in ((64 * KIB, 40), (5 * PAGE, 1), (512, 3)):
        for _ in range(count):
            engine.allocate(size, stream=2)
    held = refused(engine, GIB).partition("Held by: ")[2]
    order = ["arena on stream 2 10 MiB", "bin 64 KiB on stream 2 2.50 MiB", "bin 512 B on stream 2 1.50 KiB"]
    assert [held.find(one) for one in order] == sorted(held.find(one) for one in order)
    assert all(one in held for one in order)


def test_the_hint_fits_the_case() -> None:
    free_device = refused(engine_of(16), 17 * PAGE)
    assert "memory_fraction" not in free_device, "it allows all of the device already"
    assert "other processes" not in free_device, "there are none"
    engine = engine_of(16)
    engine.set_memory_fraction(0.5)
    assert "memory_fraction" in refused(engine, 9 * PAGE)
    assert "memory_limit" in refused(engine_of(16, conf="memory_limit:4 MiB"), 3 * PAGE)
    assert "address_space" not in free_device


def test_addresses_that_run_out_are_named() -> None:
    engine = engine_of(2048, conf="address_space:1")
    pins = []

    def cut_up() -> None:  # each block a little larger than any hole, with a small one left above it
        for pages in range(600, 2000, 100):
            block = engine.allocate(pages * PAGE)
            pins.append(engine.allocate(300 * KIB))
            engine.free(block)

    with pytest.raises(errors.OutOfMemoryError, match="address_space") as caught:
        cut_up()
    assert len(pins) > 1
    assert "(now 1)" in str(caught.value)
    engine.validate()
    for pin in pins:
        engine.free(pin)
    assert engine.allocate(2000 * PAGE)
    assert engine.violations() == 0


def shifting(engine: _core.Engine, steps: int, pool: tuple[int, int] | None = None) -> None:
    """Sizes that come back in another order, with small blocks left in between: holes that fit are rare."""
    pins: list[int] = []
    for step in range(steps):
        if pool:
            engine.begin_allocate_to_pool(0, pool, [0])
        blocks = [engine.allocate((3 + (step * 13 + i * 7) % 29) * MIB) for i in range(8)]
        if step % 10 == 0:
            pins.append(engine.allocate(300 * KIB))
        if pool:
            engine.end_allocate_to_pool(0, pool)
            engine.release_pool(0, pool)
        for block in blocks:
            engine.free(block)
        if len(pins) > 60:
            for pin in pins[::2]:
                engine.free(pin)
            pins = pins[1::2]


def test_addresses_that_run_out_cost_other_streams_nothing() -> None:
    engine = engine_of(512)
    elsewhere = engine.allocate(100 * PAGE, stream=7)
    under = handles(engine, elsewhere)
    shifting(engine, 1500)
    stats = engine.stats()
    assert (stats["pages_stolen"], stats["pages_destroyed"], stats["out_of_memory"]) == (0, 0, 0)
    assert handles(engine, elsewhere) == under
    sound(engine)


def test_a_pool_that_lives_long_does_not_run_out_of_addresses() -> None:
    engine = engine_of(512)
    engine.begin_allocate_to_pool(0, (1, 0), [0])
    engine.end_allocate_to_pool(0, (1, 0))
    shifting(engine, 1500, pool=(1, 0))
    assert engine.stats()["out_of_memory"] == 0
    sound(engine)
