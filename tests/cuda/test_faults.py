"""Fault injection: every entry point that the runtime calls fails once, with every code it plausibly has.

A scenario loads two programs and calls them in every way the runtime has: launch lists, graphs, control flow, device arrays,
foreign streams. It ends with the right answer or with the right error, never with a wrong answer, and nothing hangs. After
the fault the same scenario runs to the right answer on the same devices, and at the end nothing is left on the device.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.ir.interp import interpret
from fluxir.runtime import cuda
from fluxir.runtime.vgpu.cuda_api import Result, VirtualCuda
from tests.cuda.conftest import MEMORY
from tests.cuda.harness import close, compiled, on_cuda
from tests.cuda.test_arrays import Library
from tests.cuda.test_programs import MLP, mlp

Drivers = Callable[..., VirtualCuda]
R = Result

ANY = (R.UNKNOWN, R.INVALID_CONTEXT)
ALLOCATE = (R.OUT_OF_MEMORY, R.UNKNOWN)
WORK = (R.ILLEGAL_ADDRESS, R.LAUNCH_FAILED, R.UNKNOWN)
CODES: dict[str, tuple[Result, ...]] = {
    "cuInit": (R.NO_DEVICE, R.NOT_INITIALIZED, R.UNKNOWN),
    "cuDeviceGetCount": (R.NO_DEVICE, R.UNKNOWN),
    "cuDeviceGet": (R.INVALID_DEVICE, R.UNKNOWN),
    "cuDevicePrimaryCtxRetain": (R.OUT_OF_MEMORY, R.INVALID_DEVICE, R.UNKNOWN),
    "cuModuleLoadDataEx": (R.INVALID_PTX, R.NO_BINARY_FOR_GPU, R.UNSUPPORTED_PTX_VERSION, R.OUT_OF_MEMORY),
    "cuModuleGetFunction": (R.NOT_FOUND, R.UNKNOWN),
    "cuMemAlloc_v2": ALLOCATE,
    "cuMemHostAlloc": ALLOCATE,
    "cuStreamCreate": ALLOCATE,
    "cuEventCreate": ALLOCATE,
    "cuLaunchKernel": (R.LAUNCH_OUT_OF_RESOURCES, R.INVALID_VALUE, *WORK),
    "cuMemcpyHtoDAsync_v2": (R.INVALID_VALUE, *WORK),
    "cuMemcpyDtoHAsync_v2": (R.INVALID_VALUE, *WORK),
    "cuMemcpyDtoDAsync_v2": (R.INVALID_VALUE, *WORK),
    "cuStreamSynchronize": (R.LAUNCH_TIMEOUT, R.MISALIGNED_ADDRESS, R.ECC_UNCORRECTABLE, *WORK),
    "cuEventQuery": WORK,
    "cuStreamBeginCapture_v2": (R.STREAM_CAPTURE_UNSUPPORTED, R.UNKNOWN),
    "cuStreamEndCapture": (R.STREAM_CAPTURE_INVALIDATED, R.UNKNOWN),
    "cuGraphInstantiateWithFlags": ALLOCATE,
    "cuGraphLaunch": (R.OUT_OF_MEMORY, *WORK),
}
"""What entry points plausibly return; those that are not here, `ANY`."""

GIVES_BACK = {
    "cuMemFree_v2", "cuMemFreeHost", "cuStreamDestroy_v2", "cuModuleUnload", "cuEventDestroy_v2", "cuGraphDestroy",
    "cuGraphExecDestroy", "cuDevicePrimaryCtxRelease_v2", "cuCtxPushCurrent_v2",
}  # fmt: skip
"""Where the driver itself says that it did not take something back (or did not let us), that is still there."""

ERRORS = {R.OUT_OF_MEMORY: "FX0706", R.ILLEGAL_ADDRESS: "FX0708", R.MISALIGNED_ADDRESS: "FX0708"}
"""Our error for a code that always has the same one."""


@fx.function
def loop(x: Any) -> Any:
    h = x
    while fx.sum(h * h) > 0.3:
        h = 0.6 * fx.sin(h)
    return h


X = np.array([0.7, -0.4, 1.3], np.float32)


@cache
def programs() -> Any:
    """(code, arguments, right answers) of the two programs."""
    out = []
    for f, args in ((mlp, MLP), (loop, (X,))):
        module, code = compiled(f, *args)
        out.append((code, args, interpret(module, list(args))))
    return out


def scenario() -> None:
    """Raises AssertionError for a wrong answer, FluxError for what the device did not do."""
    (code, args, want), (looping, loop_args, loop_want) = programs()
    assert cuda.target_of("cuda") == "sm_80"
    program, second = on_cuda(code), on_cuda(looping)
    for _ in range(3):  # launches, capture, replay
        close(program.call_flat(list(args)), want, 1e-4, 1e-4)
    close(second.call_flat(list(loop_args)), loop_want, 1e-4)
    placed = [cuda.device_put(a) for a in args]
    (result,) = program.call_flat(placed)
    close([result.copy().numpy()], want, 1e-4, 1e-4)
    foreign = Foreign(args[0], "interface")
    (result,) = program.call_flat([foreign, *placed[1:]])
    (result,) = program.call_flat([foreign, *placed[1:]])
    assert len(result.__dlpack__() and result.shape) == 2
    close([result.numpy()], want, 1e-4, 1e-4)
    seconds = program.driver.elapsed(lambda: program.call_flat(list(args)))
    assert 0 < seconds < 60
    with pytest.raises(fx.FluxError, match=r"FX070[568]") as full:
        cuda.device_put(np.zeros(MEMORY, np.uint8))
    if full.value.code != "FX0706":
        raise full.value
    cuda.gpu(0).trim()
    program.close()


class Foreign(Library):
    """What fails in another library is not ours."""

    @staticmethod
    @contextlib.contextmanager
    def outside() -> Iterator[None]:
        fault, CURRENT[0].fault = CURRENT[0].fault, lambda name: None
        try:
            yield
        finally:
            CURRENT[0].fault = fault


CURRENT: list[VirtualCuda] = []


@pytest.fixture
def driver(driver_of: Drivers) -> Iterator[VirtualCuda]:
    CURRENT[:] = [driver_of("sm_80")]
    yield CURRENT[0]


@cache
def census() -> Counter[str]:
    """How often a scenario calls each entry point, the end of its devices included. Needs a driver of its own."""
    driver = CURRENT[0]
    driver.calls.clear()
    scenario()
    gc.collect()
    cuda.close_all()
    gc.collect()
    return Counter(driver.calls)


def inject(driver: VirtualCuda, name: str, at: int, code: Result) -> str | None:
    """Run a scenario in which call number `at` of `name` fails. What came of it: "" or the code of the error; None where there
    were fewer calls (when Python collects what has gone, and destructors push and pop a context, is not ours to say)."""
    seen = 0

    def fault(called: str) -> Result | None:
        nonlocal seen
        if called != name:
            return None
        seen += 1
        return code if seen == at else None

    driver.fault = fault
    came = ""
    try:
        scenario()
        gc.collect()
        cuda.close_all()
        gc.collect()
    except fx.FluxError as problem:
        came = problem.code
        problem.__traceback__ = None
    finally:
        driver.fault = lambda called: None
    return came if seen >= at else None


INJECTED: Counter[str] = Counter()
NAMES = sorted({*CODES, "cuFuncSetBlockShape", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuCtxGetDevice", "cuDeviceGetName",
                "cuDeviceComputeCapability", "cuDeviceTotalMem_v2", "cuDeviceGetAttribute", "cuMemGetInfo_v2", "cuEventRecord",
                "cuEventSynchronize", "cuEventElapsedTime_v2", "cuStreamWaitEvent", "cuMemFree_v2", "cuMemFreeHost",
                "cuStreamDestroy_v2", "cuModuleUnload", "cuEventDestroy_v2", "cuGraphDestroy", "cuGraphExecDestroy",
                "cuDevicePrimaryCtxRelease_v2"})  # fmt: skip


def test_the_list_of_entry_points_is_complete(driver: VirtualCuda) -> None:
    called = set(census()) - {"cuGetErrorString", "cuDriverGetVersion", "cuCtxGetApiVersion"}
    assert called - set(NAMES) == set(), "the runtime calls what is not tested here"
    assert set(NAMES) - called == set(), "and no longer calls something that is"


def check(driver: VirtualCuda, name: str, at: int, code: Result) -> None:
    """One fault: the right error or the right answer; the same devices go on; nothing is left."""
    came = inject(driver, name, at, code)
    if came is None:
        assert at > 1
        return
    expected = ERRORS.get(code)
    assert came == "" or came.startswith("FX07"), (name, at, code)
    if name == "cuModuleLoadDataEx":
        assert came == "FX0704"
    elif expected and came:
        assert came in (expected, "FX0701"), (name, at, code, came)
    if name == "cuLaunchKernel":
        assert came in ("FX0705", "FX0706", "FX0708")
    INJECTED[name] += 1
    scenario()
    gc.collect()
    cuda.close_all()
    gc.collect()
    left = driver.leaks()
    assert not left or name in GIVES_BACK, (name, at, code, left)
    for context in list(driver.primary.values()):
        context.destroy()
    driver.primary.clear()
    driver.retained.clear()
    driver.stack.clear()


@pytest.mark.parametrize("name", NAMES)
def test_one_failure(driver: VirtualCuda, name: str) -> None:
    """With every code, at the first, a middle and the last call."""
    total = census()[name]
    for code in CODES.get(name, ANY):
        for at in sorted({1, (total + 1) // 2, total}):
            check(driver, name, at, code)
    assert INJECTED[name] >= len(CODES.get(name, ANY))


PARTS = 24


@pytest.mark.deep
@pytest.mark.parametrize("part", range(PARTS))
def test_every_single_call_fails_once(driver: VirtualCuda, part: int) -> None:
    for name in NAMES:
        for at in range(part + 1, census()[name] + 1, PARTS):
            check(driver, name, at, CODES.get(name, ANY)[at % len(CODES.get(name, ANY))])
