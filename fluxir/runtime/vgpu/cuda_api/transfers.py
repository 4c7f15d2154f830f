"""Entry points: memory on the device and on the host, copies, fills.

Copies follow CUDA's rules for host memory: from ordinary memory an asynchronous copy has read everything when the call
returns, into ordinary memory it has written everything; pinned memory is read and written when the copy runs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from .entry import ADDRESS, SIZE, U8, U16, U32, P, entry, host_view, put, take
from .memory import Bytes
from .order import Stream
from .results import CudaError, Result
from .state import Context, VirtualCuda
from .streams import no_capture

__all__: list[str] = []

D = VirtualCuda
_PITCH = 512


# ---- allocation
@entry(P, SIZE)
def cuMemAlloc_v2(driver: D, context: Context, out: int, nbytes: int) -> None:
    no_capture(context)
    put(out, "Q", driver.memory.allocate(context, nbytes).address)


@entry(P, P, SIZE, SIZE, U32)
def cuMemAllocPitch_v2(
    driver: D, context: Context, out: int, pitch: int, width: int, height: int, element: int
) -> None:
    if element not in (4, 8, 16):
        raise CudaError(Result.INVALID_VALUE)
    row = -(-width // _PITCH) * _PITCH
    put(out, "Q", driver.memory.allocate(context, row * height).address)
    put(pitch, "Q", row)


@entry(P, SIZE, U32)
def cuMemAllocManaged(driver: D, context: Context, out: int, nbytes: int, flags: int) -> None:
    if flags not in (1, 2):
        raise CudaError(Result.INVALID_VALUE)
    put(out, "Q", driver.memory.allocate_managed(context, nbytes).address)


@entry(ADDRESS)
def cuMemFree_v2(driver: D, context: Context, address: int) -> None:
    """Waits for all work that may use the memory."""
    if not address:
        return
    no_capture(context)
    context.settle()
    context.check()
    driver.memory.free(address)


@entry(P, P)
def cuMemGetInfo_v2(driver: D, context: Context, free: int, total: int) -> None:
    room = driver.capacity(context.device)
    put(free, "Q", room - driver.memory.used(context.device))
    put(total, "Q", room)


@entry(P, P, ADDRESS)
def cuMemGetAddressRange_v2(driver: D, context: Context, base: int, nbytes: int, address: int) -> None:
    block = driver.memory.block_of(address)
    if base:
        put(base, "Q", block.address)
    if nbytes:
        put(nbytes, "Q", block.nbytes)


# ---- host memory
@entry(P, SIZE, U32)
def cuMemHostAlloc(driver: D, context: Context, out: int, nbytes: int, flags: int) -> None:
    no_capture(context)
    put(out, "Q", driver.memory.pin(context, nbytes, flags).address)


@entry(P, SIZE)
def cuMemAllocHost_v2(driver: D, context: Context, out: int, nbytes: int) -> None:
    cuMemHostAlloc(driver, context, out, nbytes, 0)


@entry(P)
def cuMemFreeHost(driver: D, context: Context, address: int) -> None:
    context.settle()
    context.check()
    driver.memory.unpin(address, registered=False)


@entry(P, SIZE, U32)
def cuMemHostRegister_v2(driver: D, context: Context, address: int, nbytes: int, flags: int) -> None:
    driver.memory.register(context, address, nbytes, flags)


@entry(P)
def cuMemHostUnregister(driver: D, context: Context, address: int) -> None:
    context.settle()
    context.check()
    driver.memory.unpin(address, registered=True)


@entry(P, P, U32)
def cuMemHostGetDevicePointer_v2(driver: D, context: Context, out: int, address: int, flags: int) -> None:
    put(out, "Q", driver.memory.device_pointer(address))


@entry(P, P)
def cuMemHostGetFlags(driver: D, context: Context, out: int, address: int) -> None:
    found = driver.memory.pinned.get(address)
    if found is None:
        raise CudaError(Result.INVALID_VALUE)
    put(out, "I", found.flags | 3)  # portable and mapped, as everything is under unified addressing


# ---- copies
def _wait(context: Context) -> Stream:
    """The default stream, once everything before is done: what a call that waits runs after."""
    no_capture(context)
    context.default.settle()
    context.default.run()
    context.check()
    return context.default


@entry(ADDRESS, P, SIZE)
def cuMemcpyHtoD_v2(driver: D, context: Context, target: int, source: int, nbytes: int) -> None:
    _wait(context)
    if nbytes:
        driver.memory.write(target, host_view(source, nbytes))


@entry(P, ADDRESS, SIZE)
def cuMemcpyDtoH_v2(driver: D, context: Context, target: int, source: int, nbytes: int) -> None:
    _wait(context)
    if nbytes:
        host_view(target, nbytes)[:] = driver.memory.read(source, nbytes)


@entry(ADDRESS, ADDRESS, SIZE)
def cuMemcpyDtoD_v2(driver: D, context: Context, target: int, source: int, nbytes: int) -> None:
    _wait(context)
    driver.memory.write(target, driver.memory.read(source, nbytes))


@entry(ADDRESS, P, SIZE, P)
def cuMemcpyHtoDAsync_v2(driver: D, context: Context, target: int, source: int, nbytes: int, stream: int) -> None:
    into, memory = context.stream(stream), driver.memory
    memory.check(target, nbytes)
    if not nbytes:
        return
    data = host_view(source, nbytes)
    if into.capture is None and not memory.is_pinned(source, nbytes):
        data = data.copy()
    into.put(lambda: memory.write(target, data))


@entry(P, ADDRESS, SIZE, P)
def cuMemcpyDtoHAsync_v2(driver: D, context: Context, target: int, source: int, nbytes: int, stream: int) -> None:
    into, memory = context.stream(stream), driver.memory
    memory.check(source, nbytes)
    if not nbytes:
        return
    view = host_view(target, nbytes)

    def copy() -> None:
        view[:] = memory.read(source, nbytes)

    into.put(copy)
    if into.capture is None and not memory.is_pinned(target, nbytes):
        into.run()
        context.check()


@entry(ADDRESS, ADDRESS, SIZE, P)
def cuMemcpyDtoDAsync_v2(driver: D, context: Context, target: int, source: int, nbytes: int, stream: int) -> None:
    memory = driver.memory
    memory.check(target, nbytes)
    memory.check(source, nbytes)
    context.stream(stream).put(lambda: memory.write(target, memory.read(source, nbytes)))


@entry(ADDRESS, P, ADDRESS, P, SIZE)
def cuMemcpyPeer(driver: D, context: Context, target: int, to: int, source: int, whence: int, nbytes: int) -> None:
    for handle in (to, whence):
        driver.find(handle, Context).settle()
    cuMemcpyDtoD_v2(driver, context, target, source, nbytes)


@entry(ADDRESS, P, ADDRESS, P, SIZE, P)
def cuMemcpyPeerAsync(
    driver: D, context: Context, target: int, to: int, source: int, whence: int, nbytes: int, stream: int
) -> None:
    for handle in (to, whence):
        driver.find(handle, Context)
    cuMemcpyDtoDAsync_v2(driver, context, target, source, nbytes, stream)


# ---- copies of boxes
_HOST, _DEVICE, _ARRAY, _UNIFIED = 1, 2, 3, 4


class _Side:
    """One side of a copy of a box: where its rows are."""

    def __init__(
        self, driver: D, kind: int, host: int, device: int, x: int, y: int, z: int, pitch: int, height: int
    ) -> None:
        if kind == _ARRAY:
            raise CudaError(Result.NOT_SUPPORTED, "the virtual GPU has no CUDA arrays")
        if kind not in (_HOST, _DEVICE, _UNIFIED):
            raise CudaError(Result.INVALID_VALUE)
        self.memory = driver.memory
        self.base = device or host if kind == _UNIFIED else host if kind == _HOST else device
        self.on_host = kind == _HOST or (kind == _UNIFIED and not self.memory.holds(self.base, 1))
        self.x, self.y, self.z, self.pitch, self.height = x, y, z, pitch, height

    def row(self, y: int, z: int) -> int:
        return self.base + ((self.z + z) * self.height + self.y + y) * self.pitch + self.x

    def read(self, address: int, nbytes: int) -> Bytes:
        return host_view(address, nbytes).copy() if self.on_host else self.memory.read(address, nbytes)

    def write(self, address: int, data: Bytes) -> None:
        if self.on_host:
            host_view(address, data.nbytes)[:] = data
        else:
            self.memory.write(address, data)


def _box(driver: D, pointer: int, deep: bool) -> Callable[[], None]:
    """The copy that a CUDA_MEMCPY2D, CUDA_MEMCPY3D or CUDA_MEMCPY3D_PEER asks for, as work."""
    if deep:
        sx, sy, sz, _, kind, host, device, _, _, pitch, rows, *rest = take(pointer, "4NIPQPPNN4NIPQPPNN3N")
        source = _Side(driver, kind, host, device, sx, sy, sz, pitch, rows)
        tx, ty, tz, _, kind, host, device, _, _, pitch, rows, width, height, depth = rest
        target = _Side(driver, kind, host, device, tx, ty, tz, pitch, rows)
    else:
        sx, sy, kind, host, device, _, pitch, *rest = take(pointer, "2NIPQPN2NIPQPN2N")
        source = _Side(driver, kind, host, device, sx, sy, 0, pitch, 0)
        tx, ty, kind, host, device, _, pitch, width, height = rest
        target = _Side(driver, kind, host, device, tx, ty, 0, pitch, 0)
        depth = 1
    for side in (source, target):
        side.pitch = side.pitch or width
        side.height = side.height or height
        if width > side.pitch:
            raise CudaError(Result.INVALID_VALUE, f"rows of {width} bytes at a pitch of {side.pitch}")
        if not side.on_host and width:
            for y, z in ((0, 0), (height - 1, depth - 1)):
                driver.memory.check(side.row(y, z), width)

    def copy() -> None:
        for z in range(depth):
            for y in range(height):
                target.write(target.row(y, z), source.read(source.row(y, z), width))

    return copy if width and height and depth else lambda: None


def _now(driver: D, context: Context, pointer: int, deep: bool) -> None:
    _wait(context)
    _box(driver, pointer, deep)()


@entry(P)
def cuMemcpy2D_v2(driver: D, context: Context, pointer: int) -> None:
    _now(driver, context, pointer, deep=False)


@entry(P)
def cuMemcpy2DUnaligned_v2(driver: D, context: Context, pointer: int) -> None:
    _now(driver, context, pointer, deep=False)


@entry(P)
def cuMemcpy3D_v2(driver: D, context: Context, pointer: int) -> None:
    _now(driver, context, pointer, deep=True)


@entry(P)
def cuMemcpy3DPeer(driver: D, context: Context, pointer: int) -> None:
    _now(driver, context, pointer, deep=True)


def _later(driver: D, context: Context, pointer: int, stream: int, deep: bool) -> None:
    """Boxes are copied before the call returns where host memory is not pinned; we do not look that closely and wait."""
    into = context.stream(stream)
    into.put(_box(driver, pointer, deep))
    if into.capture is None:
        into.run()
        context.check()


@entry(P, P)
def cuMemcpy2DAsync_v2(driver: D, context: Context, pointer: int, stream: int) -> None:
    _later(driver, context, pointer, stream, deep=False)


@entry(P, P)
def cuMemcpy3DAsync_v2(driver: D, context: Context, pointer: int, stream: int) -> None:
    _later(driver, context, pointer, stream, deep=True)


@entry(P, P)
def cuMemcpy3DPeerAsync(driver: D, context: Context, pointer: int, stream: int) -> None:
    _later(driver, context, pointer, stream, deep=True)


# ---- fills
def _fill(driver: D, stream: Stream, at: int, pitch: int, letter: str, value: int, width: int, height: int) -> None:
    """Rows of `width` elements, `pitch` bytes apart. Fills are asynchronous, all of them."""
    size = struct.calcsize(letter)
    if at % size:
        raise CudaError(Result.INVALID_VALUE, "a fill of misaligned memory")
    row = np.frombuffer(struct.pack(letter, value & (256**size - 1)) * width, np.uint8)
    if height > 1 and row.nbytes > pitch:
        raise CudaError(Result.INVALID_VALUE, f"rows of {row.nbytes} bytes at a pitch of {pitch}")
    if row.nbytes and height:
        driver.memory.check(at, row.nbytes)
        driver.memory.check(at + (height - 1) * pitch, row.nbytes)

    def fill() -> None:
        for y in range(height if row.nbytes else 0):
            driver.memory.write(at + y * pitch, row)

    stream.put(fill)


def _declare_fills() -> None:
    """cuMemsetD8 to D32, in one and two dimensions, with and without a stream."""
    for bits, letter, kind in ((8, "B", U8), (16, "H", U16), (32, "I", U32)):

        def flat(
            driver: D, context: Context, at: int, value: int, n: int, stream: int = 0, *, letter: str = letter
        ) -> None:
            _fill(driver, context.stream(stream), at, 0, letter, value, n, 1)

        def rows(
            driver: D, context: Context, at: int, pitch: int, value: int, width: int, height: int, stream: int = 0,
            *, letter: str = letter,
        ) -> None:  # fmt: skip
            _fill(driver, context.stream(stream), at, pitch, letter, value, width, height)

        for function, start, types in (
            (flat, f"cuMemsetD{bits}", (ADDRESS, kind, SIZE)),
            (rows, f"cuMemsetD2D{bits}", (ADDRESS, SIZE, kind, SIZE, SIZE)),
        ):
            entry(*types, named=start + "_v2")(function)
            entry(*types, P, named=start + "Async")(function)


_declare_fills()
