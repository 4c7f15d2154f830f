"""A case is a kernel of a fixture, arguments from a seeded generator, and what numpy says the answer is.

    @case("elementwise", "add", (1,), (1000,), deep=[(100_000,)])
    def add(rng, n):
        x, y = rng.normal(size=(2, n)).astype(np.float32)
        return Launch(4, 256, [x, y, Out(n), n], {2: x + y})

The function is called with each of the sizes. An array argument is copied to the device, `Out` is memory nobody has written to.
After the launch every array has to hold what `expect` says at its index, and every other array what it held before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fluxir.runtime import vgpu

HERE = Path(__file__).parent
BF16 = ml_dtypes.bfloat16


@dataclass(frozen=True)
class Out:
    """An array that the kernel fills."""

    shape: Any
    dtype: Any = np.float32


@dataclass(frozen=True)
class Launch:
    """`expect`: what argument i holds afterwards, or a predicate of it. `rtol`, `atol`: how near; both 0 means the same bits (any NaN is a NaN)."""

    grid: Any
    block: Any
    args: Sequence[Any]
    expect: dict[int, Any]
    shared: int = 0
    rtol: float = 0.0
    atol: float = 0.0
    printed: str = ""
    fresh: bool = False  # the module's variables must have their first values
    freed: tuple[int, ...] = ()  # arguments whose memory is given back before the launch
    memory: int = 0  # so many of `args` are memory only, which functions among the others are given: tensor maps
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One launch of one kernel; `path` is the fixture."""

    path: Path
    kernel: str
    make: Callable[..., Launch]
    size: tuple[Any, ...]
    deep: bool

    @property
    def name(self) -> str:
        return "-".join([self.path.stem, self.make.__name__, *map(str, self.size)])


CASES: list[Case] = []


def case(
    fixture: str, kernel: str, *sizes: tuple[Any, ...], deep: Sequence[tuple[Any, ...]] = (), folder: str = "ptx"
) -> Callable[[Callable[..., Launch]], Callable[..., Launch]]:
    """Declare the cases of the decorated function: one for each size, in `fixture` (several names: in each of them)."""

    def declare(make: Callable[..., Launch]) -> Callable[..., Launch]:
        for stem in fixture.split():
            for size in [*(sizes or [()]), *deep]:
                CASES.append(Case(HERE / folder / f"{stem}.ptx", kernel, make, size, size in deep))
        return make

    return declare


@functools.cache
def text(path: Path) -> str:
    return path.read_text()


def device_for(ptx: str, **options: Any) -> vgpu.Device:
    """A device of the architecture that a PTX text is for."""
    target = ptx.split(".target ", 1)[1].split()[0].rstrip(",")
    return vgpu.Device(target, **options)


@functools.cache
def load(path: Path) -> vgpu.Module:
    """A fixture on a device of its own: parsed once for all its cases."""
    return device_for(text(path)).load(text(path))


def check(launch: Launch, arrays: dict[int, vgpu.DeviceArray]) -> None:
    """AssertionError unless every array holds what it has to."""
    for i, array in arrays.items():
        got, given = array.numpy(), launch.args[i]
        if i not in launch.expect:
            assert not isinstance(given, Out), f"nobody says what argument {i} is to be"
            np.testing.assert_array_equal(got, given, f"argument {i} has changed")
            continue
        if callable(launch.expect[i]):
            assert launch.expect[i](got), f"argument {i} is {got}"
            continue
        want = np.asarray(launch.expect[i], got.dtype).reshape(got.shape)
        if launch.rtol or launch.atol:
            wide = np.longdouble if got.dtype.itemsize == 8 else np.float64
            np.testing.assert_allclose(
                got.astype(wide), want.astype(wide), launch.rtol, launch.atol, err_msg=f"argument {i}"
            )
        elif got.dtype.kind in "iub":
            np.testing.assert_array_equal(got, want, f"argument {i}")
        else:
            nan = np.isnan(want)
            np.testing.assert_array_equal(np.isnan(got), nan, f"argument {i}")
            bits = f"u{got.dtype.itemsize}"
            np.testing.assert_array_equal(got.view(bits)[~nan], want.view(bits)[~nan], f"bits of argument {i}")


def start(
    module: vgpu.Module, kernel: str, launch: Launch, check_mode: str = "raise", **options: Any
) -> tuple[vgpu.Report, str]:
    """Launch on arrays made for it, compare (unless findings are only collected) and free them: the report, what was printed."""
    gpu = module.device
    gpu.output.clear()
    args: list[Any] = []
    arrays: dict[int, vgpu.DeviceArray] = {}
    for i, a in enumerate(launch.args):
        if isinstance(a, Out):
            a = arrays[i] = gpu.empty(a.shape, a.dtype, f"argument {i}")
        elif isinstance(a, np.ndarray) and a.ndim > 0:
            a = arrays[i] = gpu.array(a, f"argument {i}")
        args.append(a)
    args = [a(arrays) if callable(a) else a for a in args[launch.memory :]]
    for i in launch.freed:
        arrays.pop(i).free()
    try:
        report = module[kernel].launch(
            launch.grid, launch.block, args, launch.shared, check_mode, **{**launch.options, **options}
        )
        if not report.findings:
            check(launch, arrays)
    finally:
        for a in arrays.values():
            a.free()
    assert not gpu.leaks()
    return report, "".join(gpu.output)


def run(what: Case, **options: Any) -> vgpu.Report:
    """Launch a case and compare: the launch's report."""
    seed = sum(map(ord, what.name))
    launch = what.make(np.random.default_rng(seed), *what.size)
    module = device_for(text(what.path)).load(text(what.path)) if launch.fresh else load(what.path)
    report, printed = start(module, what.kernel, launch, **options)
    assert printed == launch.printed
    return report
