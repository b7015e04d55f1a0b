"""What copies move, what pointers say, and what the device says of itself.

Cases for test_runtime.py; cases.py runs them.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path

import cuda_client as cu
from cases import case
from cuda_client import Cuda, ok


@case(memory=str(64 * cu.MIB))
def copies_move_bytes(cuda: Cuda) -> None:
    first, second = cuda.malloc(cu.PAGE), cuda.malloc(cu.PAGE)
    assert cuda.read(first, 64) == bytes(64)
    cuda.write(first + 100, b"hello")
    ok(cuda.rt.cudaMemcpy(c_void_p(second), c_void_p(first + 100), c_size_t(5), cu.ON_DEVICE))
    assert cuda.read(second, 6) == b"hello\0"
    ok(cuda.rt.cudaMemset(c_void_p(first), 0x5A, c_size_t(102)))
    assert cuda.read(first + 98, 8) == b"\x5a" * 4 + b"llo\0"
    ok(cuda.free(first))
    assert cuda.read(second, 5) == b"hello"


@case(memory=str(64 * cu.MIB))
def two_mappings_of_a_handle_are_one_memory(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    ok(cuda.rt.cudaSetDevice(0))
    base = cuda.reserve(16 * cu.MIB)
    handle = cuda.mapped(base, cu.PAGE)
    ok(cuda.map(base + 4 * cu.MIB, cu.PAGE, handle))
    ok(cuda.set_access(base + 4 * cu.MIB, cu.PAGE))
    cuda.write(base + 7, b"alias")
    assert cuda.read(base + 4 * cu.MIB + 7, 5) == b"alias"
    ok(cuda.unmap(base, cu.PAGE))
    ok(cuda.unmap(base + 4 * cu.MIB, cu.PAGE))
    ok(cuda.map(base + 8 * cu.MIB, cu.PAGE, handle))
    ok(cuda.set_access(base + 8 * cu.MIB, cu.PAGE))
    assert cuda.read(base + 8 * cu.MIB + 7, 5) == b"alias"
    ok(cuda.unmap(base + 8 * cu.MIB, cu.PAGE))
    ok(cuda.release(handle))
    cuda.mapped(base, cu.PAGE)
    assert cuda.read(base + 7, 5) == bytes(5)
    assert cuda.violations() == {}


@case(memory=str(64 * cu.MIB))
def a_copy_crosses_mappings(cuda: Cuda) -> None:
    ok(cuda.rt.cudaSetDevice(0))
    base = cuda.reserve(3 * cu.PAGE)
    for page in (2, 0, 1):
        cuda.mapped(base + page * cu.PAGE, cu.PAGE)
    data = bytes(range(200))
    cuda.write(base + cu.PAGE - 100, data)
    assert cuda.read(base + cu.PAGE - 100, 200) == data
    assert cuda.read(base + cu.PAGE, 100) == data[100:]


@case(memory=str(64 * cu.MIB), copy_bytes="4096")
def what_a_large_copy_does_not_move_is_zero(cuda: Cuda) -> None:
    address = cuda.malloc(4 * cu.MIB)
    cuda.write(address + 8192, b"old")
    data = b"\x11" * cu.MIB
    cuda.write(address, data)
    back = cuda.read(address, cu.MIB)
    assert back == data[:4096] + bytes(cu.MIB - 4096)
    ok(cuda.rt.cudaMemset(c_void_p(address), 0x22, c_size_t(cu.MIB)))
    assert cuda.read(address + 4000, 200) == b"\x22" * 96 + bytes(104)
    pinned = c_void_p()
    ok(cuda.rt.cudaHostAlloc(byref(pinned), c_size_t(cu.MIB), 0))
    ctypes.memset(pinned, 0xFF, cu.MIB)
    ok(cuda.rt.cudaMemcpy(pinned, c_void_p(address), c_size_t(cu.MIB), cu.TO_HOST))
    assert ctypes.string_at(pinned, cu.MIB) == b"\x22" * 4096 + bytes(cu.MIB - 4096)
    ok(cuda.rt.cudaFreeHost(pinned))


@case(memory=str(64 * cu.MIB), copy_bytes="300")
def any_order_of_writes_and_copies_reads_as_bytes_do(cuda: Cuda) -> None:
    """Against a plain array; what a copy does not move is unknown, and zero. A launch makes all of it so."""
    size, draw = 4096, random.Random(7)
    address, model = cuda.malloc(cu.PAGE), bytearray(4096)
    for _ in range(3000):
        first, second = draw.randrange(size), draw.randrange(size)
        length = draw.randrange(1, min(600, size - max(first, second)) + 1)
        moved = min(length, 300)
        match draw.randrange(20):
            case 0:
                cuda.launch()
                model = bytearray(size)
            case 1 | 2 | 3 | 4 | 5 | 6:
                data = draw.randbytes(length)
                cuda.write(address + first, data)
                model[first : first + length] = data[:moved] + bytes(length - moved)
            case 7 | 8 | 9 | 10:
                value = draw.choice([0, 5])
                ok(cuda.rt.cudaMemset(c_void_p(address + first), value, c_size_t(length)))
                kept = length if value == 0 else moved
                model[first : first + length] = bytes([value]) * kept + bytes(length - kept)
            case 11 | 12 | 13 | 14:
                if abs(first - second) < length:
                    continue
                to, start = c_void_p(address + first), c_void_p(address + second)
                ok(cuda.rt.cudaMemcpy(to, start, c_size_t(length), cu.ON_DEVICE))
                model[first : first + length] = model[second : second + moved] + bytes(length - moved)
            case _:
                assert cuda.read(address + first, moved) == model[first : first + moved]


@case(memory=str(64 * cu.MIB))
def rows_copy_with_their_pitch(cuda: Cuda) -> None:
    address, pitch = c_void_p(), c_size_t()
    ok(cuda.rt.cudaMallocPitch(byref(address), byref(pitch), c_size_t(10), c_size_t(4)))
    assert pitch.value >= 10
    data = bytes(range(40))
    width, height = c_size_t(10), c_size_t(4)
    ok(cuda.rt.cudaMemcpy2D(address, pitch, data, c_size_t(10), width, height, cu.TO_DEVICE))
    back = ctypes.create_string_buffer(40)
    ok(cuda.rt.cudaMemcpy2D(back, c_size_t(10), address, pitch, width, height, cu.TO_HOST))
    assert back.raw == data
    assert cuda.read(address.value + pitch.value, 10) == data[10:20]


@case(memory=str(96 << 30))
def a_large_device_costs_little_memory(cuda: Cuda) -> None:
    before = resident_bytes()
    addresses = [cuda.malloc(2 << 30) for _ in range(40)]
    for address in addresses:
        ok(cuda.rt.cudaMemset(c_void_p(address), 0, c_size_t(2 << 30)))
        ok(cuda.rt.cudaMemset(c_void_p(address), 1, c_size_t(2 << 30)))
    assert cuda.used() == 80 << 30
    assert resident_bytes() - before < 400 * cu.MIB
    for address in addresses:
        ok(cuda.free(address))
    assert resident_bytes() - before < 50 * cu.MIB


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@case(memory=str(64 * cu.MIB))
def pointers_say_what_they_are(cuda: Cuda) -> None:
    class Attributes(ctypes.Structure):
        _fields_ = (
            ("type", c_int),
            ("device", c_int),
            ("on_device", c_void_p),
            ("on_host", c_void_p),
            ("x", c_int * 16),
        )

    def of(address: int) -> tuple[int, int]:
        attributes = Attributes()
        ok(cuda.rt.cudaPointerGetAttributes(byref(attributes), c_void_p(address)))
        return attributes.type, attributes.device

    device = cuda.malloc(1000)
    pinned, managed = c_void_p(), c_void_p()
    ok(cuda.rt.cudaHostAlloc(byref(pinned), c_size_t(100), 0))
    ok(cuda.rt.cudaMallocManaged(byref(managed), c_size_t(100), 1))
    ctypes.memset(managed, 3, 100)
    plain = ctypes.create_string_buffer(100)
    reserved = cuda.reserve(cu.PAGE)
    unregistered = (0, -2)
    assert of(device + 10) == (2, 0)
    assert of(pinned.value) == (1, 0)
    assert of(managed.value) == (3, 0)
    assert of(ctypes.addressof(plain)) == unregistered
    assert of(reserved) == unregistered
    handle = cuda.mapped(reserved, cu.PAGE)
    assert of(reserved) == (2, 0)
    base, size = c_uint64(), c_size_t()
    ok(cuda.cuMemGetAddressRange(byref(base), byref(size), c_uint64(device + 10)))
    assert (base.value, size.value) == (device, 1000)
    ok(cuda.free(device))
    assert of(device) == unregistered
    ok(cuda.rt.cudaHostRegister(plain, c_size_t(100), 0))
    assert of(ctypes.addressof(plain)) == (1, 0)
    assert cuda.rt.cudaHostRegister(plain, c_size_t(10), 0) == 712
    ok(cuda.rt.cudaHostUnregister(plain))
    ok(cuda.free(managed.value))
    ok(cuda.unmap(reserved, cu.PAGE))
    ok(cuda.release(handle))
    assert cuda.violations() == {}


@case()
def the_driver_wants_to_be_initialized(cuda: Cuda) -> None:
    handle = c_int()
    assert cuda.cuDeviceGet(byref(handle), 0) == cu.NOT_INITIALIZED
    ok(cuda.cuInit(0))
    ok(cuda.cuDeviceGet(byref(handle), 0))
    address = c_uint64()
    assert cuda.cuMemAlloc(byref(address), c_size_t(cu.PAGE)) == cu.INVALID_CONTEXT
    context, current = c_void_p(), c_void_p()
    flags, active = c_uint(), c_int(-1)
    ok(cuda.cuDevicePrimaryCtxGetState(0, byref(flags), byref(active)))
    assert active.value == 0
    ok(cuda.cuDevicePrimaryCtxRetain(byref(context), 0))
    ok(cuda.cuDevicePrimaryCtxGetState(0, byref(flags), byref(active)))
    assert active.value == 1
    ok(cuda.cuCtxPushCurrent(context))
    ok(cuda.cuMemAlloc(byref(address), c_size_t(cu.PAGE)))
    ok(cuda.cuMemFree(address))
    ok(cuda.cuCtxPopCurrent(byref(current)))
    assert current.value == context.value
    ok(cuda.cuCtxGetCurrent(byref(current)))
    assert current.value is None
    pointer, status = c_void_p(), c_int()
    code = cuda.rt.cuGetProcAddress_v2(b"cuNoSuchThing", byref(pointer), 12_000, c_uint64(0), byref(status))
    assert (code, pointer.value, status.value) == (500, None, 1)
    code = cuda.rt.cuGetProcAddress_v2(b"cuLaunchKernelEx", byref(pointer), 11_000, c_uint64(0), byref(status))
    assert (code, pointer.value, status.value) == (500, None, 2)


@case(gpu="a100")
def properties_are_the_cards(cuda: Cuda) -> None:
    properties = ctypes.create_string_buffer(4096)
    ok(cuda.rt.cudaGetDeviceProperties(properties, 0))
    assert properties.value == b"NVIDIA A100-SXM4-80GB"

    def attribute(number: int) -> int:
        value = c_int(-1)
        ok(cuda.rt.cudaDeviceGetAttribute(byref(value), number, 0))
        return value.value

    assert (attribute(75), attribute(76), attribute(16), attribute(10), attribute(102)) == (8, 0, 108, 32, 1)
    # Libraries divide by these.
    for number in (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 36, 37, 38, 39, 81, 82, 97, 106):
        assert attribute(number) > 0, number
    blocks = c_int()
    ok(cuda.rt.cudaOccupancyMaxActiveBlocksPerMultiprocessor(byref(blocks), c_void_p(1), 256, c_size_t(0)))
    assert 0 < blocks.value <= 2048 // 256
    assert cuda.rt.cudaDeviceGetAttribute(byref(blocks), 1, 5) == cu.INVALID_DEVICE


@case()
def what_is_not_simulated_says_so(cuda: Cuda) -> None:
    assert cuda.rt.cudaMallocArray(None, None, c_size_t(1), c_size_t(1), 0) == cu.NOT_SUPPORTED
    assert cuda.last_error() == cu.NOT_SUPPORTED


@case(memory=str(64 * cu.MIB))
def memory_of_another_process_opens_there_only(cuda: Cuda) -> None:
    address = cuda.malloc(cu.PAGE)
    handle = cu.IpcHandle()
    ok(cuda.rt.cudaIpcGetMemHandle(byref(handle), c_void_p(address)))
    pointer = c_void_p()
    assert cuda.rt.cudaIpcOpenMemHandle(byref(pointer), handle, 1) == cu.INVALID_CONTEXT
    environment = {**os.environ, "IPC_HANDLE": bytes(handle).hex()}
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("cases.py")), "open_memory_of_another_process"],
        env=environment,
        check=True,
    )


@case(memory=str(64 * cu.MIB))
def open_memory_of_another_process(cuda: Cuda) -> None:
    handle = cu.IpcHandle.from_buffer_copy(bytes.fromhex(os.environ["IPC_HANDLE"]))
    first, second = c_void_p(), c_void_p()
    ok(cuda.rt.cudaIpcOpenMemHandle(byref(first), handle, 1))
    ok(cuda.rt.cudaIpcOpenMemHandle(byref(second), handle, 1))
    assert first.value == second.value
    assert cuda.used() == 0
    cuda.write(first.value, b"there")
    assert cuda.read(first.value, 5) == b"there"
    ok(cuda.rt.cudaIpcCloseMemHandle(first))
    ok(cuda.rt.cudaIpcCloseMemHandle(second))
    assert cuda.rt.cudaIpcCloseMemHandle(second) == cu.INVALID_VALUE


@case(memory=str(64 * cu.MIB))
def a_launch_forgets_contents(cuda: Cuda) -> None:
    address, other = cuda.malloc(cu.PAGE), cuda.malloc(cu.PAGE)
    cuda.write(address, b"before")
    cuda.write(other, b"beside")
    assert cuda.read(address, 6) == b"before"
    ok(cuda.launch())
    assert cuda.read(address, 6) == bytes(6)
    cuda.write(address + 10, b"after")
    assert cuda.read(address, 16) == bytes(10) + b"after\0"
    ok(cuda.rt.cudaMemcpy(c_void_p(address), c_void_p(other), c_size_t(6), cu.ON_DEVICE))
    assert cuda.read(address, 16) == bytes(10) + b"after\0"


@case(memory=str(64 * cu.MIB), keep_contents="1")
def contents_outlive_launches_where_asked(cuda: Cuda) -> None:
    address = cuda.malloc(cu.PAGE)
    cuda.write(address, b"before")
    ok(cuda.launch())
    assert cuda.read(address, 6) == b"before"
