"""Entry points: functions, their attributes, launches. Also what a module and a function of a context are."""

from __future__ import annotations

import ctypes
import math
import re

from fluxir.errors import FluxError
from fluxir.target import GpuTarget

from ..findings import SanitizerError
from .entry import F32, I32, SIZE, U32, P, entry, put, take
from .order import Stream
from .results import CudaError, Result, of_finding
from .state import Context, VirtualCuda

__all__ = ["Function", "Module"]

D = VirtualCuda
Triple = tuple[int, int, int]
_MAX_PARAMETERS = 4352


class Module:
    """PTX on the device of a context. `loaded`: the virtual GPU's own module."""

    def __init__(self, context: Context, text: str) -> None:
        """INVALID_PTX, UNSUPPORTED_PTX_VERSION for an instruction that the virtual GPU does not know."""
        self.context = context
        try:
            self.loaded = context.gpu.load(text)
            self.code = [
                self.loaded[name].code for name in self.loaded
            ]  # linked here, as a driver compiles when it loads
        except FluxError as reason:
            line = f", line {reason.loc.line}" if reason.loc is not None else ""
            message = re.sub(r"^line \d+[^:]*: ", "", reason.message)
            kind = Result.UNSUPPORTED_PTX_VERSION if reason.code == "FX0710" else Result.INVALID_PTX
            raise CudaError(kind, f"ptxas application ptx input{line}; error   : {message}") from None


class Function:
    """A kernel of a module, and what the calls of old (cuParamSet...) have set for its next launch."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.context, self.name = module, module.context, name
        self.kernel = module.loaded[name]
        self.tree = self.kernel.function
        self.dynamic_limit: int | None = None
        self.block: Triple = (1, 1, 1)
        self.shared = self.size = 0
        self.parameters = bytearray(_MAX_PARAMETERS)

    @property
    def target(self) -> GpuTarget:
        return self.context.gpu.target

    @property
    def max_dynamic(self) -> int:
        return (
            max(0, self.target.shared_static - self.kernel.static_shared)
            if self.dynamic_limit is None
            else self.dynamic_limit
        )

    @property
    def max_threads(self) -> int:
        """The launch bound that the kernel declares, or the device's."""
        bound = self.tree.limits.get("maxntid") or self.tree.limits.get("reqntid")
        most = self.target.max_threads_per_block
        return min(math.prod(bound), most) if bound else most

    def launch(
        self, grid: Triple, block: Triple, shared: int, stream: Stream, parameters: bytes, cooperative: bool = False
    ) -> None:
        """INVALID_VALUE and LAUNCH_OUT_OF_RESOURCES for what no launch can be; what the kernel does wrong comes later."""
        t, needed = self.target, self.kernel.parameter_bytes
        threads = block[0] * block[1] * block[2]
        fits = all(1 <= n <= m for n, m in zip((*grid, *block), (*t.max_grid, *t.max_block)))
        if not fits or not 1 <= threads <= t.max_threads_per_block:
            raise CudaError(Result.INVALID_VALUE, f"{self.name}: grid {grid}, block {block}")
        if threads > self.max_threads:
            raise CudaError(
                Result.LAUNCH_OUT_OF_RESOURCES, f"{self.name}: {threads} threads, at most {self.max_threads}"
            )
        if shared > self.max_dynamic:
            raise CudaError(Result.INVALID_VALUE, f"{self.name}: {shared} bytes of dynamic shared memory")
        if len(parameters) < needed:
            raise CudaError(Result.INVALID_VALUE, f"{self.name}: {needed} bytes of parameters, {len(parameters)} given")
        memory, kernel, packed = self.context.driver.memory, self.kernel, bytes(parameters[:needed])

        def run() -> None:
            memory.to_device()
            try:
                kernel.launch_packed(grid, block, packed, shared_bytes=shared, cooperative=cooperative)
            except SanitizerError as reason:
                raise CudaError(of_finding(reason.findings[0].kind), str(reason)) from None
            except FluxError as reason:
                raise CudaError(Result.LAUNCH_FAILED, reason.message) from None
            finally:
                memory.to_host()

        stream.put(run)


# ---- functions
@entry(P, I32, P)
def cuFuncGetAttribute(driver: D, context: Context, out: int, number: int, handle: int) -> None:
    """Registers and local memory are the virtual registers and variables: no compiler has assigned them."""
    f = driver.find(handle, Function)
    version = re.search(r"\d+", f.module.loaded.ptx.target)
    major, minor = f.module.loaded.ptx.version
    values = {
        0: f.max_threads, 1: f.kernel.static_shared, 2: 0,
        3: sum(v.nbytes for v in f.tree.variables if v.space == "local"),
        4: min(len(f.tree.registers), f.target.registers_per_thread),
        5: 10 * major + minor, 6: int(version[0]) if version else 0, 7: 0, 8: f.max_dynamic, 9: -1,
    }  # fmt: skip
    if number not in values:
        raise CudaError(Result.INVALID_VALUE)
    put(out, "i", values[number])


@entry(P, I32, I32)
def cuFuncSetAttribute(driver: D, context: Context, handle: int, number: int, value: int) -> None:
    f = driver.find(handle, Function)
    if number == 8 and 0 <= value <= f.target.shared_per_block - f.kernel.static_shared:
        f.dynamic_limit = value
    elif number != 9 or not -1 <= value <= 100:
        raise CudaError(Result.INVALID_VALUE)


@entry(P, I32)
def cuFuncSetCacheConfig(driver: D, context: Context, handle: int, config: int) -> None:
    driver.find(handle, Function)


@entry(P, I32)
def cuFuncSetSharedMemConfig(driver: D, context: Context, handle: int, config: int) -> None:
    driver.find(handle, Function)


@entry(P, P, I32, SIZE)
def cuOccupancyMaxActiveBlocksPerMultiprocessor(
    driver: D, context: Context, out: int, handle: int, threads: int, dynamic: int
) -> None:
    """By threads, blocks and shared memory: registers are not assigned here."""
    f = driver.find(handle, Function)
    t = f.target
    if not 1 <= threads <= t.max_threads_per_block:
        raise CudaError(Result.INVALID_VALUE)
    shared = f.kernel.static_shared + dynamic
    rounded = -(-threads // t.warp) * t.warp
    put(
        out,
        "i",
        min(t.max_threads_per_sm // rounded, t.max_blocks_per_sm, *([t.shared_per_sm // shared] if shared else [])),
    )


# ---- launches
@entry(P, U32, U32, U32, U32, U32, U32, U32, P, P, P)
def cuLaunchKernel(
    driver: D, context: Context, handle: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int,
    stream: int, values: int, extra: int,
) -> None:  # fmt: skip
    f = driver.find(handle, Function)
    packed = _packed(extra) if extra else _gathered(f, values)
    f.launch((gx, gy, gz), (bx, by, bz), shared, context.stream(stream), packed)


@entry(P, U32, U32, U32, U32, U32, U32, U32, P, P)
def cuLaunchCooperativeKernel(
    driver: D, context: Context, handle: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int,
    stream: int, values: int,
) -> None:  # fmt: skip
    """All blocks are resident together, so that they can wait for each other."""
    f = driver.find(handle, Function)
    f.launch((gx, gy, gz), (bx, by, bz), shared, context.stream(stream), _gathered(f, values), cooperative=True)


def _gathered(f: Function, values: int) -> bytes:
    """The parameters from an array of pointers to them."""
    if not values and f.tree.parameters:
        raise CudaError(Result.INVALID_VALUE, f"{f.name} has parameters, and none are given")
    raw = bytearray()
    for i, (at, v) in enumerate(f.kernel.arguments.values()):
        raw += bytes(at - len(raw)) + ctypes.string_at(take(values + 8 * i, "Q")[0], v.nbytes)
    return bytes(raw)


def _packed(extra: int) -> bytes:
    """The parameters from CU_LAUNCH_PARAM_BUFFER_POINTER and CU_LAUNCH_PARAM_BUFFER_SIZE."""
    buffer, nbytes, at = 0, 0, extra
    while (key := take(at, "Q")[0]) != 0:
        value = take(at + 8, "Q")[0]
        if key == 1:
            buffer = value
        elif key == 2:
            nbytes = take(value, "Q")[0]
        else:
            raise CudaError(Result.INVALID_VALUE, f"the launch option {key} is not known")
        at += 16
    return ctypes.string_at(buffer, nbytes) if nbytes else b""


# ---- launches as they were before CUDA 4
@entry(P, I32, I32, I32)
def cuFuncSetBlockShape(driver: D, context: Context, handle: int, x: int, y: int, z: int) -> None:
    driver.find(handle, Function).block = (x, y, z)


@entry(P, U32)
def cuFuncSetSharedSize(driver: D, context: Context, handle: int, nbytes: int) -> None:
    driver.find(handle, Function).shared = nbytes


@entry(P, U32)
def cuParamSetSize(driver: D, context: Context, handle: int, nbytes: int) -> None:
    if nbytes > _MAX_PARAMETERS:
        raise CudaError(Result.INVALID_VALUE)
    driver.find(handle, Function).size = nbytes


def _set(f: Function, at: int, raw: bytes) -> None:
    if not 0 <= at <= _MAX_PARAMETERS - len(raw):
        raise CudaError(Result.INVALID_VALUE)
    f.parameters[at : at + len(raw)] = raw


@entry(P, I32, U32)
def cuParamSeti(driver: D, context: Context, handle: int, at: int, value: int) -> None:
    _set(driver.find(handle, Function), at, int(value).to_bytes(4, "little"))


@entry(P, I32, F32)
def cuParamSetf(driver: D, context: Context, handle: int, at: int, value: float) -> None:
    _set(driver.find(handle, Function), at, bytes(ctypes.c_float(value)))


@entry(P, I32, P, U32)
def cuParamSetv(driver: D, context: Context, handle: int, at: int, pointer: int, nbytes: int) -> None:
    _set(driver.find(handle, Function), at, ctypes.string_at(pointer, nbytes))


def _old_launch(driver: D, handle: int, x: int, y: int, stream: Stream) -> None:
    f = driver.find(handle, Function)
    f.launch((x, y, 1), f.block, f.shared, stream, bytes(f.parameters[: f.size]))


@entry(P)
def cuLaunch(driver: D, context: Context, handle: int) -> None:
    _old_launch(driver, handle, 1, 1, context.default)


@entry(P, I32, I32)
def cuLaunchGrid(driver: D, context: Context, handle: int, x: int, y: int) -> None:
    _old_launch(driver, handle, x, y, context.default)


@entry(P, I32, I32, P)
def cuLaunchGridAsync(driver: D, context: Context, handle: int, x: int, y: int, stream: int) -> None:
    _old_launch(driver, handle, x, y, context.stream(stream))
