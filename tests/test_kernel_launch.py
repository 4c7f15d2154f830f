"""Launching kernels and looking inside them: forms of a launch, arguments, devices, attributes, texts, lines of the source."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fluxir as fx
from fluxir import config, driver
from fluxir.kernels import Kernel
from fluxir.kernels.reflect import occupancy
from fluxir.runtime import vgpu
from fluxir.target import parse_target


@fx.kernel
def saxpy(a: fx.f32, x: fx.f32["N"], y: fx.f32["N"]):
    """y += a x."""
    i = fx.gpu.global_id.x
    if i < len(x):
        y[i] += a * x[i]


def ones(n: int = 100) -> np.ndarray:
    return np.ones(n, "f4")


def test_the_forms_of_a_launch() -> None:
    x, want = np.arange(100, dtype="f4"), 1 + 2 * np.arange(100, dtype="f4")
    launches: list[Callable[[np.ndarray], Any]] = [
        lambda y: saxpy[4, 32](2.0, x, y),
        lambda y: saxpy[(4, 1, 1), (32,)](2, x, y=y),
        lambda y: saxpy[4, 32, 0, None](np.float32(2), x, y),
        lambda y: saxpy.launch(4, 32, (2.0, x, y)),
        lambda y: fx.kernel(saxpy.fn, block=32)[4](2.0, x, y),
        lambda y: saxpy.on("vgpu:sm_80")[4, 32](2.0, x, y),
    ]
    for launch in launches:
        y = ones()
        launch(y)
        np.testing.assert_array_equal(y, want)
    y = ones()
    with config.override(device="vgpu"):
        report = saxpy[4, 32](2.0, x, y)
    np.testing.assert_array_equal(y, want)
    assert report.block == (32, 1, 1) and report.counters is not None
    assert saxpy.__doc__ == "y += a x." and repr(saxpy.on("cpu")) == "<fx.kernel saxpy on cpu>"


def test_arrays_that_are_strided_the_same_or_on_the_device() -> None:
    wide = np.ones((100, 2), "f4")
    base = np.arange(200, dtype="f4")
    for device in ("cpu", "vgpu"):
        w = wide.copy()
        saxpy.on(device)[4, 32](2.0, base[::2], w[:, 1])
        np.testing.assert_array_equal(w[:, 1], 1 + 2 * base[::2])
        np.testing.assert_array_equal(w[:, 0], 1)
        y = np.arange(100, dtype="f4")
        saxpy.on(device)[4, 32](2.0, y, y)
        np.testing.assert_array_equal(y, 3 * np.arange(100))
    gpu = vgpu.Device("sm_80")
    x, y = gpu.array(base[:100]), gpu.array(ones())
    saxpy.on("vgpu")[4, 32](2.0, x, y)
    saxpy.on("vgpu")[4, 32](2.0, base[:100], y)
    np.testing.assert_array_equal(y.numpy(), 1 + 4 * base[:100])
    x.free()
    y.free()
    gpu.close()


def test_every_size_runs_the_same_code() -> None:
    builds: list[Any] = []
    for n in (1, 31, 64):
        x, y = np.arange(n, dtype="f4"), np.zeros(n, "f4")
        saxpy[2, 32](1.0, x, y)
        np.testing.assert_array_equal(y, x)
        builds.append(saxpy.build(1.0, x, y))
    assert builds[0] is builds[1] is builds[2]


def test_the_compile_cache_keeps_machine_code_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        for device in ("cpu", "vgpu"):
            y = ones()
            Kernel(saxpy.fn).on(device)[4, 32](2.0, ones(), y)
            np.testing.assert_array_equal(y, 3)

    run()
    from fluxir.kernels.build import Build

    def fail(*args: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(Build, "ptx", fail)
    monkeypatch.setattr(Build, "native", fail)
    run()
    with config.override(cache=False), pytest.raises(AssertionError, match="compiled again"):
        run()


class Ray(NamedTuple):
    origin: fx.f32
    step: fx.f32
    out: Any


def test_structs_and_scalars_as_arguments() -> None:
    @fx.kernel
    def walk(ray: Ray, n: fx.i32, up: bool):
        i = fx.gpu.global_id.x
        if i < n:
            ray.out[i] = ray.origin + ray.step * fx.f32(i) if up else -ray.step

    for device in ("cpu", "vgpu"):
        out = np.zeros(10, "f4")
        walk.on(device)[1, 32](Ray(1.0, 0.5, out), 8, True)
        np.testing.assert_array_equal(out, [*(1 + 0.5 * np.arange(8)), 0, 0])


WRONG: list[tuple[str, Callable[[], Any], str]] = [
    ("no grid", lambda: saxpy(1.0, ones(), ones()), "FX0335.*called without a grid"),
    ("no block", lambda: saxpy[4](1.0, ones(), ones()), "FX0335.*a launch says"),
    ("a grid of nothing", lambda: saxpy[0, 32](1.0, ones(), ones()), "FX0335.*a grid is 1 to 3 positive integers, not 0"),
    ("too many threads", lambda: saxpy[1, (64, 32)](1.0, ones(), ones()), "FX0335.*2048 threads"),
    ("another block", lambda: fx.kernel(saxpy.fn, block=32)[1, 64](1.0, ones(), ones()), "FX0335.*compiled for"),
    ("too few arguments", lambda: saxpy[1, 32](1.0, ones()), "FX0601.*missing a required argument: 'y'"),
    ("another type", lambda: saxpy[1, 32](1.0, ones(), np.ones(100)), "FX0603.*y holds f32, given float64"),
    ("another rank", lambda: saxpy[1, 32](1.0, ones(), np.ones((10, 10), "f4")), "FX0602.*shape \\(10, 10\\)"),
    ("another size", lambda: saxpy[1, 32](1.0, ones(), ones(50)), "FX0602.*axis 0 is 50"),
    ("no number", lambda: saxpy[1, 32]("2", ones(), ones()), "FX0603.*a is f32, given '2'"),
    ("no array", lambda: saxpy[1, 32](1.0, ones(), 3.0), "FX0606.*y is an array"),
    ("an overlap", lambda: saxpy[1, 32](1.0, (b := ones(101))[:-1], b[1:]), "FX0335.*x and y overlap in part"),
    ("a stream", lambda: saxpy.on("cpu")[1, 32, 0, object()](1.0, ones(), ones()), "FX0335.*no streams"),
    ("no device", lambda: saxpy.on("tpu"), "FX0902"),
    ("no GPU", lambda: saxpy.on("cuda")[1, 32](1.0, ones(), ones()), "FX070[12]"),
    ("a list", lambda: saxpy[1, 32](1.0, ones(), [1.0]), "FX0606"),
]  # fmt: skip


@pytest.mark.parametrize(("launch", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_launches_say_what_is_wrong(launch: Callable[[], Any], message: str) -> None:
    with pytest.raises(fx.FluxError) as e:
        launch()
    assert re.search(message, f"{e.value.code} {e.value.message}"), e.value.render()
    assert e.value.help


def test_an_argument_that_is_written_must_be_writable() -> None:
    y = ones()
    y.flags.writeable = False
    with pytest.raises(fx.FluxError, match=r"FX0335.*cannot be written"):
        saxpy[4, 32](1.0, ones(), y)
    saxpy[4, 32](1.0, y, ones())  # x is only read


def test_dynamic_shared_memory_that_the_launch_does_not_give() -> None:
    @fx.kernel
    def k(out, n: fx.i32):
        s = fx.gpu.shared((n,), fx.f32)
        s[fx.gpu.thread_id.x] = 1.0
        out[fx.gpu.thread_id.x] = s[fx.gpu.thread_id.x]

    for device in ("cpu", "vgpu"):
        with pytest.raises(fx.FluxError, match=r"FX0335.*the launch gives none"):
            k.on(device)[1, 32](np.zeros(32, "f4"), 32)
    with pytest.raises(fx.FluxError, match="FX0708"):
        k.on("vgpu")[1, 32, 64](np.zeros(32, "f4"), 32)


def test_attributes_and_suggestions() -> None:
    @fx.kernel
    def k(x):
        s = fx.gpu.shared((1024,), fx.f32)
        t = fx.gpu.thread_id.x
        s[t] = x[t]
        fx.gpu.barrier()
        x[t] = s[t ^ 1]

    a = k.on("vgpu:sm_80").attributes(ones())
    assert a.source == "ptxas" and a.target == "sm_80" and a.shared == 4096 and 4 <= a.registers < 32 and a.local == 0
    s = k.on("vgpu:sm_80").suggest(5000, ones())
    assert s.block in (64, 128, 256, 512, 1024) and s.grid == -(-5000 // s.block) and s.occupancy == 1.0
    t = parse_target("sm_80")
    assert occupancy(t, 1024, 64, 0) == 0.5  # 65536 registers: one block of two
    assert occupancy(t, 256, 32, 60 * 1024) == 0.25  # shared memory: two blocks
    assert occupancy(t, 32, 16, 0) == 0.5  # 32 blocks


def test_resources_are_estimated_where_ptxas_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxir.codegen import checks
    from fluxir.errors import error

    def nowhere() -> str:
        raise error("FX0511")

    monkeypatch.setattr(checks, "find_ptxas", nowhere)
    a = Kernel(saxpy.fn).on("vgpu").attributes(1.0, ones(), ones())
    assert a.source == "estimate" and 16 <= a.registers <= 64


def test_the_texts_of_a_kernel() -> None:
    typed = saxpy.code("typed")
    assert (
        typed.startswith("kernel @saxpy(%a: f32, %x: &f32[N], %y: &f32[N]) [grid=(), block=()] {")
        and "store(%y" in typed
    )
    loops = saxpy.on("cpu").code("loops", block=64)
    assert "parallel(" in loops and "grid_x: i64" in loops
    assert "define" in saxpy.on("cpu").code("llvm") and "saxpy" in saxpy.on("cpu").code("asm")
    gpu = saxpy.on("vgpu:sm_80")
    assert "thread_id" in gpu.code("loops") and "ptx_kernel" in gpu.code("llvm")
    assert ".target sm_80" in gpu.code("ptx") and "FFMA" in gpu.code("sass") or "FMUL" in gpu.code("sass")
    for k, stage in ((gpu, "asm"), (saxpy, "fused")):
        with pytest.raises(fx.FluxError, match="FX0512"):
            k.code(stage)
    with pytest.raises(fx.FluxError, match="FX0309"):
        fx.kernel(lambda_like).code("typed")


def lambda_like(x, y):
    y[0] = x[0]


def test_ptx_says_which_line_each_instruction_comes_from() -> None:
    ptx = saxpy.on("vgpu").code("ptx")
    first = saxpy.fn.__code__.co_firstlineno
    body = range(first + 3, first + 6)
    lines = [int(n) for n in re.findall(r"^\t\.loc\t1 (\d+) \d+", ptx, re.M)]
    assert set(lines) - {0} <= set(body) and body[-1] in lines
    assert f'.file\t1 "{Path(__file__)}"' in ptx


def test_kernels_of_models_name_the_user_s_lines() -> None:
    def model(x: Any) -> Any:
        y = fx.exp(x)
        return fx.sum(y * 2, axis=1)

    line = model.__code__.co_firstlineno
    lowered = fx.jit(model).lower(np.ones((4, 300), "f4"))
    ptx = lowered.as_text("ptx", "sm_80")
    places = {int(n) for n in re.findall(r"\.loc\t\d+ (\d+) ", ptx)}
    assert {line + 1, line + 2} <= places and f'"{__file__}"' in ptx
    key = driver.key_parts(lowered.module, parse_target("sm_80"), None)
    assert "places" in key and "places" not in driver.key_parts(lowered.module, parse_target("cpu"), None)


def test_a_kernel_may_call_another_one_as_a_function() -> None:
    @fx.kernel
    def both(x, y):
        saxpy(2.0, x, y)
        saxpy(fx.f32(1), x, y)

    y = ones()
    both[4, 32](ones(), y)
    np.testing.assert_array_equal(y, 4)
