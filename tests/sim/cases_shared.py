"""Cards that processes share (POOLALLOC_SIM_SHARED): what one takes the others see, and what it leaves they get.

Cases for test_runtime.py; cases.py runs them. The other processes are children of fork(), each with a slot of its own.
A case's own process asks NVML, which makes no context, so that its children may use the device.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_uint, c_ulonglong, c_void_p

import cuda_client as cu
from cases import case
from cuda_client import Cuda, ok

CAPACITY = 16 * cu.PAGE
PROCESSES = 8


class Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Process(ctypes.Structure):
    _fields_ = (("pid", c_uint), ("used", c_ulonglong), ("gpu_instance", c_uint), ("compute_instance", c_uint))


def used(cuda: Cuda, device: int = 0) -> int:
    """What NVML says is used of a device."""
    memory = Memory()
    ok(cuda.rt.nvmlDeviceGetMemoryInfo(c_void_p(device + 1), byref(memory)))
    assert memory.free + memory.used == memory.total == CAPACITY
    return memory.used


def users(cuda: Cuda, device: int = 0) -> dict[int, int]:
    """What NVML says each process uses of a device, this one included."""
    count = c_uint(0)
    assert cuda.rt.nvmlDeviceGetComputeRunningProcesses_v3(c_void_p(device + 1), byref(count), None) == 7
    infos = (Process * count.value)()
    ok(cuda.rt.nvmlDeviceGetComputeRunningProcesses_v3(c_void_p(device + 1), byref(count), infos))
    return {info.pid: info.used for info in infos}


class Child:
    """A process that runs `body`, which is told when to go on and says when it has come somewhere."""

    def __init__(self, body: Callable[[Child], object]) -> None:
        inward, outward = os.pipe(), os.pipe()
        self.pid = os.fork()
        here = self.pid == 0
        self._read, self._write = (inward[0], outward[1]) if here else (outward[0], inward[1])
        for end in (*inward, *outward):
            if end not in (self._read, self._write):
                os.close(end)
        if here:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a case that fails leaves nobody behind
            code = 1
            try:
                body(self)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)  # nothing is given back by hand

    def tell(self) -> None:
        os.write(self._write, b".")

    def wait(self) -> None:
        """Wait until the other side tells; fails if it has ended instead."""
        assert os.read(self._read, 1) == b"."

    def end(self, number: int | None = None) -> None:
        """Wait for its end, by a signal of this number if one is given."""
        if number is not None:
            os.kill(self.pid, number)
        os.close(self._read)
        os.close(self._write)
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == -(number or 0)


@contextmanager
def holding(cuda: Cuda, size: int, device: int = 0) -> Iterator[Child]:
    """While in force, another process holds so much of a device."""

    def body(child: Child) -> None:
        ok(cuda.rt.cudaSetDevice(device))
        cuda.malloc(size)
        child.tell()
        child.wait()

    child = Child(body)
    child.wait()
    yield child
    child.tell()
    child.end()


def shared(number: int, **switches: str) -> Callable[[Callable[[Cuda], None]], Callable[[Cuda], None]]:
    """A case with a card of its own. The name holds the pid of the tests, whose other workers run cases too."""
    return case(memory=str(CAPACITY), shared=f"test-{os.getpid()}-{number}", **switches)


@shared(1, devices="2")
def use_is_common_by_device(cuda: Cuda) -> None:
    assert used(cuda) == 0
    with holding(cuda, 3 * cu.PAGE) as one, holding(cuda, 4 * cu.PAGE) as other, holding(cuda, cu.PAGE, 1) as third:
        assert (used(cuda, 0), used(cuda, 1)) == (7 * cu.PAGE, cu.PAGE)
        assert users(cuda, 0) == {os.getpid(): 0, one.pid: 3 * cu.PAGE, other.pid: 4 * cu.PAGE}
        assert users(cuda, 1) == {os.getpid(): 0, third.pid: cu.PAGE}
        assert cuda.mem_info() == (CAPACITY - 7 * cu.PAGE, CAPACITY)
        address = cuda.malloc(cu.PAGE)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ok(cuda.cuMemGetInfo(byref(free), byref(total)))
        assert (free.value, total.value) == (CAPACITY - 8 * cu.PAGE, CAPACITY)
        assert (cuda.used(), used(cuda)) == (cu.PAGE, 8 * cu.PAGE), "the report's figures are the process's own"
        ok(cuda.free(address))
        assert used(cuda) == 7 * cu.PAGE
    assert (used(cuda, 0), used(cuda, 1)) == (0, 0)


@shared(2)
def what_one_holds_the_other_gets_after_it(cuda: Cuda) -> None:
    def body(child: Child) -> None:
        assert cuda.try_malloc(14 * cu.PAGE)[0] == cu.OUT_OF_MEMORY
        ok(cuda.cuInit(0))
        assert cuda.try_create(14 * cu.PAGE)[0] == cu.OUT_OF_MEMORY
        kept = cuda.malloc(3 * cu.PAGE)
        assert cuda.try_malloc(cu.PAGE)[0] == cu.OUT_OF_MEMORY
        assert cuda.mem_info() == (0, CAPACITY)
        child.tell()
        child.wait()
        # Nobody has asked what is free since the other one ended: a full card is reason enough to look.
        cuda.malloc(13 * cu.PAGE)
        ok(cuda.free(kept))
        assert cuda.mem_info() == (3 * cu.PAGE, CAPACITY)

    with holding(cuda, 13 * cu.PAGE):
        waiting = Child(body)
        waiting.wait()
    waiting.tell()
    waiting.end()
    assert used(cuda) == 0


@shared(3)
def idle_memory_of_a_pool_makes_room_for_the_same_process(cuda: Cuda) -> None:
    with holding(cuda, 8 * cu.PAGE):
        ok(cuda.set_pool_attribute(4, 1 << 40))
        ok(cuda.free_async(cuda.malloc_async(6 * cu.PAGE)))
        ok(cuda.sync_stream())
        assert used(cuda) == 14 * cu.PAGE
        cuda.malloc(8 * cu.PAGE)
        assert used(cuda) == 16 * cu.PAGE


def killed(cuda: Cuda, body: Callable[[Child], object], rounds: int) -> None:
    """A process is killed at a random moment, and all that it used is free at once; again and again."""
    chance = random.Random(rounds)
    for _ in range(rounds):
        child = Child(body)
        child.wait()
        if chance.random() < 0.5:
            assert used(cuda) <= CAPACITY
        child.end(signal.SIGKILL)
        assert used(cuda) == 0
        assert users(cuda) == {os.getpid(): 0}


@shared(4)
def a_process_killed_while_idle_gives_back(cuda: Cuda) -> None:
    def body(child: Child) -> None:
        cuda.malloc(CAPACITY)
        child.tell()
        child.wait()

    killed(cuda, body, 3)


@shared(5)
def a_process_killed_while_it_allocates_gives_back(cuda: Cuda) -> None:
    def body(child: Child) -> None:
        cuda.malloc(cu.PAGE)
        child.tell()
        while True:
            ok(cuda.free(cuda.malloc(cu.PAGE)))

    killed(cuda, body, 20)


@shared(6)
def a_process_killed_at_a_full_card_gives_back(cuda: Cuda) -> None:
    """Such a process asks who is dead all the time, which happens under the lock."""

    def body(child: Child) -> None:
        cuda.malloc(CAPACITY)
        child.tell()
        while True:
            assert cuda.try_malloc(cu.PAGE)[0] == cu.OUT_OF_MEMORY

    killed(cuda, body, 20)


@shared(7)
def a_killed_process_gives_back_though_its_child_lives(cuda: Cuda) -> None:
    def body(child: Child) -> None:
        cuda.malloc(CAPACITY)
        if os.fork() == 0:
            os.read(child._read, 1)
            os._exit(0)
        child.tell()
        child.wait()

    assert used(cuda) == 0
    child = Child(body)
    child.wait()
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    assert used(cuda) == 0
    child.tell()


@shared(8)
def a_program_that_takes_the_place_of_another_starts_with_nothing(cuda: Cuda) -> None:
    def body(child: Child) -> None:
        cuda.malloc(CAPACITY)
        os.set_inheritable(child._read, True)
        os.set_inheritable(child._write, True)
        os.execv("/bin/sh", ["sh", "-c", f"echo -n . >&{child._write}; read line <&{child._read}; exit 0"])

    assert used(cuda) == 0
    child = Child(body)
    child.wait()
    assert used(cuda) == 0
    child.end()


@shared(9)
def memory_opened_from_another_process_counts_once(cuda: Cuda) -> None:
    handle = cu.IpcHandle.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))

    def body(child: Child) -> None:
        ok(cuda.rt.cudaIpcGetMemHandle(byref(handle), c_void_p(cuda.malloc(5 * cu.PAGE))))
        child.tell()
        child.wait()

    child = Child(body)
    child.wait()
    pointer = c_void_p()
    ok(cuda.rt.cudaIpcOpenMemHandle(byref(pointer), handle, 1))
    assert (used(cuda), users(cuda)) == (5 * cu.PAGE, {os.getpid(): 0, child.pid: 5 * cu.PAGE})
    ok(cuda.rt.cudaIpcCloseMemHandle(pointer))
    assert used(cuda) == 5 * cu.PAGE
    child.tell()
    child.end()


@shared(10)
def more_than_half_of_a_card_is_one_processs_at_a_time(cuda: Cuda) -> None:
    """Each process that gets more than half of it says so in memory that all see, and looks for another that does."""
    board = (ctypes.c_ubyte * PROCESSES).from_buffer(mmap.mmap(-1, mmap.PAGESIZE))

    def contend(number: int) -> Callable[[Child], None]:
        def body(child: Child) -> None:
            code, address = cuda.try_malloc(CAPACITY // 2 + 1)
            child.tell()
            child.wait()
            for _ in range(1500):
                if code == cu.SUCCESS:
                    board[number] = 1
                    assert sum(board) == 1
                    board[number] = 0
                    ok(cuda.free(address))
                code, address = cuda.try_malloc(CAPACITY // 2 + 1)
                assert code in (cu.SUCCESS, cu.OUT_OF_MEMORY)

        return body

    every = [Child(contend(number)) for number in range(PROCESSES)]
    for child in every:
        child.wait()
    for child in every:
        child.tell()
    for child in every:
        child.end()
    assert used(cuda) == 0


@shared(11)
def processes_that_allocate_at_random_never_exceed_the_card(cuda: Cuda) -> None:
    """Whenever all of them stop, what they hold adds up to what is used; and they fill the card to the last page."""
    held = (ctypes.c_uint64 * PROCESSES).from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
    maxima = (ctypes.c_uint64 * PROCESSES).from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
    rounds = 12

    def allocate(number: int) -> Callable[[Child], None]:
        chance = random.Random(number)
        blocks: list[tuple[int, int]] = []

        def grow(pages: int) -> bool:
            code, address = cuda.try_malloc(pages * cu.PAGE)
            if code == cu.SUCCESS:
                blocks.append((address, pages * cu.PAGE))
                held[number] += pages * cu.PAGE
                maxima[number] = max(maxima[number], held[number])
            free = cuda.mem_info()[0]
            assert free + held[number] <= CAPACITY
            return code == cu.SUCCESS

        def shrink() -> None:
            address, size = blocks.pop(chance.randrange(len(blocks)))
            ok(cuda.free(address))
            held[number] -= size

        def body(child: Child) -> None:
            for _ in range(rounds):
                child.wait()
                for _ in range(60):
                    if blocks and chance.random() < 0.5:
                        shrink()
                    else:
                        grow(chance.randint(1, 4))
                child.tell()
                child.wait()
                while grow(1):
                    pass
                child.tell()
            child.wait()

        return body

    every = [Child(allocate(number)) for number in range(PROCESSES)]
    for _ in range(rounds):
        for full in (False, True):
            for child in every:
                child.tell()
            for child in every:
                child.wait()
            assert used(cuda) == sum(held) <= CAPACITY
            assert sum(held) == CAPACITY or not full
    for child in every:
        child.tell()
        child.end()
    assert all(0 < most <= CAPACITY for most in maxima)
    assert used(cuda) == 0
