"""Entry points: start, devices and their attributes, contexts. Numbers of attributes: `cuda.h`, enum `CUdevice_attribute`."""

from __future__ import annotations

import ctypes
from functools import cache

from fluxir.target import GpuTarget

from .entry import I32, SIZE, U32, P, entry, put, text_at
from .results import WORDS, CudaError, Result
from .state import Context, VirtualCuda

__all__: list[str] = []

D = VirtualCuda
# What targets do not say: multiprocessors, clock and memory clock in kHz, bus width in bits, L2 in bytes, of the first product.
_PRODUCTS = {80: (108, 1410000, 1215000, 5120, 40 << 20), 90: (132, 1980000, 2619000, 5120, 50 << 20)}
_ORDINARY = (82, 1695000, 9751000, 384, 6 << 20)


@cache
def attributes(t: GpuTarget) -> dict[int, int]:
    """Value by number of attribute; those that are not here are 0."""
    processors, clock, memory_clock, bus, l2 = _PRODUCTS.get(t.sm, _ORDINARY)
    bx, by, bz = t.max_block
    gx, gy, gz = t.max_grid
    return {
        1: t.max_threads_per_block, 2: bx, 3: by, 4: bz, 5: gx, 6: gy, 7: gz,
        8: t.shared_static, 9: 65536, 10: t.warp, 11: 2**31 - 1, 12: t.registers_per_sm, 13: clock, 14: 512, 15: 1,
        16: processors, 19: 1, 31: 1, 35: 0, 36: memory_clock, 37: bus, 38: l2, 39: t.max_threads_per_sm, 40: 2, 41: 1,
        75: t.capability[0], 76: t.capability[1], 78: 1, 79: 1, 80: 1, 81: t.shared_per_sm, 82: t.registers_per_sm, 83: 1,
        89: 0, 97: t.shared_per_block, 106: t.max_blocks_per_sm, 111: 1024,
    }  # fmt: skip


# ---- start
@entry(U32, needs="nothing")
def cuInit(driver: D, flags: int) -> None:
    if flags:
        raise CudaError(Result.INVALID_VALUE)
    driver.initialised = True


@entry(P, needs="nothing")
def cuDriverGetVersion(driver: D, out: int) -> None:
    put(out, "i", driver.VERSION)


@cache
def _words(result: int, detail: str) -> ctypes.Array[ctypes.c_char]:
    """Text that stays where it is: callers keep the pointer."""
    words = WORDS.get(Result(result)) if result in list(Result) else None
    return ctypes.create_string_buffer(
        ((words or "unrecognized error code") + (f": {detail}" if detail else "")).encode()
    )


@entry(I32, P, needs="nothing")
def cuGetErrorString(driver: D, code: int, out: int) -> None:
    """The driver's words, and after them what the virtual GPU knows of the last error of that kind."""
    detail = driver.detail.get(Result(code), "") if code in list(Result) else ""
    put(out, "Q", ctypes.addressof(_words(code, detail)))


@entry(I32, P, needs="nothing")
def cuGetErrorName(driver: D, code: int, out: int) -> None:
    name = f"CUDA_ERROR_{Result(code).name}" if code in list(Result) and code else "CUDA_SUCCESS"
    put(out, "Q", ctypes.addressof(_name(name)))


@cache
def _name(name: str) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(name.encode())


# ---- devices
@entry(P, needs="driver")
def cuDeviceGetCount(driver: D, out: int) -> None:
    put(out, "i", len(driver.gpus))


@entry(P, I32, needs="driver")
def cuDeviceGet(driver: D, out: int, number: int) -> None:
    driver.gpu(number)
    put(out, "i", number)


@entry(P, I32, I32, needs="driver")
def cuDeviceGetName(driver: D, out: int, room: int, device: int) -> None:
    _text(out, room, f"fluxir virtual GPU {driver.gpu(device).target.name}")


@entry(P, I32, I32, needs="driver")
def cuDeviceGetPCIBusId(driver: D, out: int, room: int, device: int) -> None:
    driver.gpu(device)
    _text(out, room, f"0000:{device + 1:02X}:00.0")


@entry(P, P, needs="driver")
def cuDeviceGetByPCIBusId(driver: D, out: int, text: int) -> None:
    bus = text_at(text).split(":")[-2:-1]
    number = int(bus[0], 16) - 1 if bus else -1
    driver.gpu(number)
    put(out, "i", number)


def _text(out: int, room: int, text: str) -> None:
    if not out or room < 1:
        raise CudaError(Result.INVALID_VALUE)
    ctypes.memmove(out, text.encode()[: room - 1] + b"\0", min(len(text.encode()) + 1, room))


@entry(P, I32, I32, needs="driver")
def cuDeviceGetAttribute(driver: D, out: int, number: int, device: int) -> None:
    put(out, "i", attributes(driver.gpu(device).target).get(number, 0))


@entry(P, P, I32, needs="driver")
def cuDeviceComputeCapability(driver: D, major: int, minor: int, device: int) -> None:
    capability = driver.gpu(device).target.capability
    put(major, "i", capability[0])
    put(minor, "i", capability[1])


@entry(P, I32, needs="driver")
def cuDeviceTotalMem_v2(driver: D, out: int, device: int) -> None:
    driver.gpu(device)
    put(out, "Q", driver.capacity(device))


@entry(P, I32, I32, needs="driver")
def cuDeviceCanAccessPeer(driver: D, out: int, device: int, peer: int) -> None:
    driver.gpu(device), driver.gpu(peer)
    put(out, "i", int(device != peer))


# ---- contexts
@entry(P, I32, needs="driver")
def cuDevicePrimaryCtxRetain(driver: D, out: int, device: int) -> None:
    driver.gpu(device)
    if device not in driver.primary:
        driver.primary[device] = Context(driver, device, primary=True)
    driver.retained[device] += 1
    put(out, "Q", driver.primary[device].handle)


@entry(I32, needs="driver")
def cuDevicePrimaryCtxRelease_v2(driver: D, device: int) -> None:
    if driver.retained[device] < 1:
        raise CudaError(Result.INVALID_CONTEXT)
    driver.retained[device] -= 1
    if not driver.retained[device]:
        driver.primary.pop(device).destroy()


def _create(driver: D, out: int, flags: int, device: int) -> None:
    driver.gpu(device)
    driver.stack.append(Context(driver, device, flags))
    put(out, "Q", driver.stack[-1].handle)


@entry(P, P, U32, I32, needs="driver")
def cuCtxCreate_v4(driver: D, out: int, parameters: int, flags: int, device: int) -> None:
    _create(driver, out, flags, device)


@entry(P, U32, I32, needs="driver")
def cuCtxCreate_v2(driver: D, out: int, flags: int, device: int) -> None:
    _create(driver, out, flags, device)


@entry(P, needs="driver")
def cuCtxDestroy_v2(driver: D, handle: int) -> None:
    context = driver.find(handle, Context)
    if driver.stack and driver.stack[-1] is context:
        driver.stack.pop()
    context.destroy()


@entry(P, needs="driver")
def cuCtxDetach(driver: D, handle: int) -> None:
    """The use count of CUDA's early days: there is one use. A primary context is released, not detached."""
    if driver.find(handle, Context).primary:
        raise CudaError(Result.INVALID_CONTEXT, "a primary context cannot be detached")
    cuCtxDestroy_v2(driver, handle)


@entry(P, U32)
def cuCtxAttach(driver: D, context: Context, out: int, flags: int) -> None:
    put(out, "Q", context.handle)


@entry(P, needs="driver")
def cuCtxPushCurrent_v2(driver: D, handle: int) -> None:
    driver.stack.append(driver.find(handle, Context))


@entry(P, needs="driver")
def cuCtxPopCurrent_v2(driver: D, out: int) -> None:
    if not driver.stack:
        raise CudaError(Result.INVALID_CONTEXT, "no context is current")
    context = driver.stack.pop()
    if out:
        put(out, "Q", context.handle)


@entry(P, needs="driver")
def cuCtxGetCurrent(driver: D, out: int) -> None:
    put(out, "Q", driver.stack[-1].handle if driver.stack else 0)


@entry(P, needs="driver")
def cuCtxSetCurrent(driver: D, handle: int) -> None:
    if driver.stack:
        driver.stack.pop()
    if handle:
        driver.stack.append(driver.find(handle, Context))


@entry(P)
def cuCtxGetDevice(driver: D, context: Context, out: int) -> None:
    put(out, "i", context.device)


@entry()
def cuCtxSynchronize(driver: D, context: Context) -> None:
    for s in context.streams:
        s.not_capturing()
    context.settle()
    context.check()


@entry(P, P, needs="driver")
def cuCtxGetApiVersion(driver: D, handle: int, out: int) -> None:
    if handle:
        driver.find(handle, Context)
    put(out, "I", driver.VERSION)


_LIMITS = {0: 1024, 1: 1 << 20, 2: 8 << 20}  # stack, printf buffer, device heap, in bytes


@entry(P, I32)
def cuCtxGetLimit(driver: D, context: Context, out: int, limit: int) -> None:
    if limit not in _LIMITS:
        raise CudaError(Result.UNSUPPORTED_LIMIT)
    put(out, "Q", context.limits.get(limit, _LIMITS[limit]))


@entry(I32, SIZE)
def cuCtxSetLimit(driver: D, context: Context, limit: int, value: int) -> None:
    if limit not in _LIMITS:
        raise CudaError(Result.UNSUPPORTED_LIMIT)
    context.limits[limit] = value


@entry(P)
def cuCtxGetCacheConfig(driver: D, context: Context, out: int) -> None:
    put(out, "i", context.cache_config)


@entry(I32)
def cuCtxSetCacheConfig(driver: D, context: Context, config: int) -> None:
    context.cache_config = config


@entry(P)
def cuCtxGetSharedMemConfig(driver: D, context: Context, out: int) -> None:
    put(out, "i", 1)  # banks of four bytes


@entry(I32)
def cuCtxSetSharedMemConfig(driver: D, context: Context, config: int) -> None:
    """Newer devices have one configuration and ignore the call."""


@entry(P, U32)
def cuCtxEnablePeerAccess(driver: D, context: Context, peer: int, flags: int) -> None:
    other = driver.find(peer, Context)
    if flags or other.device == context.device:
        raise CudaError(Result.INVALID_VALUE)
    if peer in context.peers:
        raise CudaError(Result.PEER_ACCESS_ALREADY_ENABLED)
    context.peers.add(peer)


@entry(P)
def cuCtxDisablePeerAccess(driver: D, context: Context, peer: int) -> None:
    if peer not in context.peers:
        raise CudaError(Result.PEER_ACCESS_NOT_ENABLED)
    context.peers.discard(peer)


# ---- profiling: there is no profiler to switch
@entry()
def cuProfilerStart(driver: D, context: Context) -> None:
    """Nothing to start."""


@entry()
def cuProfilerStop(driver: D, context: Context) -> None:
    """Nothing to stop."""


@entry(P, P, I32)
def cuProfilerInitialize(driver: D, context: Context, config: int, output: int, mode: int) -> None:
    """Nothing to prepare."""
