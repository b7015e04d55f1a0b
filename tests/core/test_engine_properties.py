"""Random programs against the oracle: whatever is asked for, in whatever order, and whatever the driver refuses.

`make check-long` runs many random programs of each kind instead of the same few every time.
"""

from effort import LONG, examples
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from oracle import PAGE, Block, Oracle, RefusedError

from poolalloc import _core

MIB = 1 << 20
STREAMS = (0, 16, 32, 0x7F00_1000)
POOLS = ((1, 0), (2, 0), (0, 7))
# Driver calls that a program's own calls can meet, with what the driver may answer.
REFUSALS = [
    (call, status)
    for call in ("create", "map", "allow_access", "unmap", "destroy", "create_event", "record_event", "query_event",
                 "synchronize_event", "synchronize_device", "reserve", "memory_info")
    for status in ("failed", "out_of_memory")
]  # fmt: skip

SETTINGS = settings(
    max_examples=examples(160),
    derandomize=not LONG,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def edges() -> list[int]:
    """Sizes at which something changes: classes, the granularity, pages, bounds of the bins."""
    around = [512, 4096, 8192, 32 << 10, 64 << 10, 256 << 10, MIB, PAGE, 3 * PAGE, 20 * PAGE]
    classes = [_core.bin_bytes(index) for index in range(0, 80, 7)]
    return sorted({size + by for size in around + classes for by in (-1, 0, 1)})


SIZES = st.one_of(
    st.integers(1, 4096),
    st.sampled_from(edges()),
    st.integers(1, 2 * MIB),
    st.integers(1, 40).map(lambda pages: pages * PAGE),
    st.integers(1, 300 * MIB),
)


class Programs(RuleBasedStateMachine):
    """Rules are what a program, or torch for it, does; the invariant is the oracle's."""

    may_be_refused = False

    @initialize(
        conf=st.sampled_from(
            ["", "", "bin_limit:0", "bin_limit:1 MiB", "bin_limit:5000,placement_candidates:1", "memory_limit:24 MiB",
             "memory_fraction:0.7", "address_space:1", "exact_bins:6MiB/2/4+2MiB/0/3+524289/1/1+40MiB/0/2",
             "bin_limit:0,exact_bins:4096/3/5+8192/0/9+262144/0/1+20MiB/1/2"]
        ),
        growth=st.sampled_from(["tight", "balanced", "fast"]),
        devices=st.sampled_from([1, 1, 2]),
        memory=st.sampled_from([8 * MIB, 32 * MIB, 100 * MIB, 512 * MIB]),
        lag=st.sampled_from([0, 3]),
    )  # fmt: skip
    def start(self, conf: str, growth: str, devices: int, memory: int, lag: int) -> None:
        self.oracle = Oracle(f"growth:{growth},{conf}".rstrip(","), devices=devices, memory=memory, lag=lag)
        self.freed: list[Block] = []

    def device(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, self.oracle.devices - 1), label="device")

    def block(self, data: st.DataObject) -> Block:
        return self.oracle.live[data.draw(st.integers(0, len(self.oracle.live) - 1), label="block")]

    @rule(size=SIZES, stream=st.sampled_from(STREAMS), data=st.data())
    def allocate(self, size: int, stream: int, data: st.DataObject) -> None:
        try:
            self.oracle.allocate(size, self.device(data), stream)
        except RefusedError:
            return

    @rule(size=SIZES, count=st.integers(2, 12), stream=st.sampled_from(STREAMS), data=st.data())
    def allocate_several(self, size: int, count: int, stream: int, data: st.DataObject) -> None:
        device = self.device(data)
        try:
            for _ in range(count):
                self.oracle.allocate(size, device, stream)
        except RefusedError:
            return

    @rule(data=st.data(), stream=st.sampled_from(STREAMS))
    def allocate_nothing(self, data: st.DataObject, stream: int) -> None:
        assert self.oracle.allocate(0, self.device(data), stream) is None

    @precondition(lambda self: self.oracle.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        block = self.block(data)
        self.oracle.free(block)
        self.freed.append(block)

    @precondition(lambda self: len(self.oracle.live) > 3)
    @rule(data=st.data(), step=st.integers(1, 3))
    def free_many(self, data: st.DataObject, step: int) -> None:
        for block in self.oracle.live[data.draw(st.integers(0, 2), label="first") :: step]:
            self.oracle.free(block)
            self.freed.append(block)

    @precondition(lambda self: self.oracle.live)
    @rule(data=st.data(), streams=st.sets(st.sampled_from(STREAMS), min_size=1, max_size=3))
    def record_streams(self, data: st.DataObject, streams: set[int]) -> None:
        block = self.block(data)
        for stream in streams:
            self.oracle.record_stream(block, stream)

    @precondition(lambda self: self.freed)
    @rule(data=st.data())
    def free_twice(self, data: st.DataObject) -> None:
        block = self.freed[data.draw(st.integers(0, len(self.freed) - 1), label="freed")]
        assume(all(block.address != live.address for live in self.oracle.live))
        self.oracle.refuses(block.address)

    @precondition(lambda self: self.oracle.live)
    @rule(data=st.data(), by=st.sampled_from([1, 512, PAGE, -512, 1 << 40]))
    def free_what_is_no_block(self, data: st.DataObject, by: int) -> None:
        address = self.block(data).address + by
        assume(all(address != live.address for live in self.oracle.live))
        self.oracle.refuses(address)

    @rule(ticks=st.integers(1, 4))
    def advance(self, ticks: int) -> None:
        self.oracle.engine.advance(ticks)

    @rule()
    def empty_cache(self) -> None:
        self.oracle.empty_cache()

    @rule(fraction=st.sampled_from([0.05, 0.3, 0.6, 1.0]), data=st.data())
    def set_memory_fraction(self, fraction: float, data: st.DataObject) -> None:
        self.oracle.set_memory_fraction(fraction, self.device(data))

    @rule(pool_id=st.sampled_from(POOLS), streams=st.permutations(STREAMS), capture=st.booleans(), data=st.data())
    def begin_pool(self, pool_id: tuple[int, int], streams: list[int], capture: bool, data: st.DataObject) -> None:
        device = self.device(data)
        pool = self.oracle.pool(device, pool_id)
        assume(pool is None or not pool.routing)
        chosen = tuple(streams[: data.draw(st.integers(1, len(STREAMS)), label="streams")])
        captured = {other.captured for other in self.oracle.pools if other.device == device}
        self.oracle.begin_pool(device, pool_id, chosen, capture=capture and chosen[0] not in captured)

    @precondition(lambda self: any(pool.routing for pool in self.oracle.pools))
    @rule(data=st.data())
    def end_pool(self, data: st.DataObject) -> None:
        routing = [pool for pool in self.oracle.pools if pool.routing]
        self.oracle.end_pool(routing[data.draw(st.integers(0, len(routing) - 1), label="pool")])

    @precondition(lambda self: any(pool.users > 0 for pool in self.oracle.pools))
    @rule(data=st.data())
    def release_pool(self, data: st.DataObject) -> None:
        used = [pool for pool in self.oracle.pools if pool.users > 0]
        self.oracle.release_pool(used[data.draw(st.integers(0, len(used) - 1), label="pool")])

    @precondition(lambda self: self.may_be_refused)
    @rule(refusal=st.sampled_from(REFUSALS), nth=st.integers(1, 4))
    def driver_will_refuse(self, refusal: tuple[str, str], nth: int) -> None:
        self.oracle.engine.fail(refusal[0], nth, refusal[1])

    @invariant()
    def holds(self) -> None:
        self.oracle.check()

    def teardown(self) -> None:
        if not hasattr(self, "oracle"):
            return
        for pool in self.oracle.pools:
            if pool.routing:
                self.oracle.end_pool(pool)
            while pool.users > 0:
                self.oracle.release_pool(pool)
        for block in list(self.oracle.live):
            self.oracle.free(block)
        self.oracle.check()
        for _ in range(2 if not self.may_be_refused else 40):  # an event may be recorded late, or refused for a while
            self.oracle.engine.advance(100)
            self.oracle.empty_cache()
        self.oracle.check()
        if self.oracle.engine.failures_waiting() == 0:
            assert sum(self.oracle.engine.used_bytes(device) for device in range(self.oracle.devices)) == 0


class RefusedPrograms(Programs):
    """The same, with a driver that refuses calls now and then."""

    may_be_refused = True


TestPrograms = Programs.TestCase
TestPrograms.settings = SETTINGS
TestRefusedPrograms = RefusedPrograms.TestCase
TestRefusedPrograms.settings = SETTINGS
