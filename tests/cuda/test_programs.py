"""Compiled programs through the real PyCUDA: results equal the interpreter's, memory is what was planned, control flow runs."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.runtime import sizes
from fluxir.runtime.cuda_device import gpu
from fluxir.runtime.vgpu.cuda_api import VirtualCuda
from tests.cuda.harness import close, compiled, on_cuda, same

Drivers = Callable[..., VirtualCuda]
rng = np.random.default_rng(0)


def f32(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture(params=["late", "eager"])
def driver(driver_of: Drivers, request: pytest.FixtureRequest) -> VirtualCuda:
    return driver_of("sm_80", eager=request.param == "eager")


def mlp(x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
    h = fx.maximum(x @ w1 + b1, 0.0)
    return h @ w2 + b2


MLP = (f32(5, 16), f32(16, 24), f32(24), f32(24, 8), f32(8))


def test_mlp(driver: VirtualCuda) -> None:
    same(mlp, *MLP, rtol=1e-4, atol=1e-4)


def test_softmax_and_reductions(driver: VirtualCuda) -> None:
    def f(x: Any) -> Any:
        e = fx.exp(x - fx.max(x, axis=1, keepdims=True))
        return e / fx.sum(e, axis=1, keepdims=True), fx.mean(x), fx.argmax(x, axis=0)

    same(f, f32(6, 40))


def test_while_and_if_decide_on_the_host(driver: VirtualCuda) -> None:
    @fx.function
    def f(x: Any) -> Any:
        h, n = x, 0
        while fx.sum(h * h) > 0.05:
            if fx.sum(h) > 1:
                h = h * 0.5
            else:
                h = 0.6 * fx.sin(h)
            n = n + 1
        return h, n

    program = same(f, np.array([0.7, -0.4, 1.3], np.float32), rtol=1e-4)
    assert program.held.replays is None, "what depends on the device's numbers is no graph"
    assert driver.calls["cuStreamSynchronize"] > 6


def test_gradients_through_a_scan(driver: VirtualCuda) -> None:
    def loss(w: Any, xs: Any) -> Any:
        return fx.sum(fx.scan(lambda c, u: (fx.tanh(c @ w + u), c), fx.zeros(4, fx.f32), xs)[1] ** 2)

    same(fx.grad(loss), f32(4, 4), f32(3, 4), rtol=1e-4, atol=1e-5)


def test_integers_booleans_and_bf16(driver: VirtualCuda) -> None:
    def f(i: Any, b: Any, h: Any) -> Any:
        return i * 3 - 1, b & (i > 2), fx.astype(h, fx.f32) + 1.0, h

    import ml_dtypes

    same(f, np.arange(6, dtype=np.int64), np.array([True, False] * 3), f32(6).astype(ml_dtypes.bfloat16))


def test_empty_arrays(driver: VirtualCuda) -> None:
    same(lambda x: (x + 1, fx.sum(x, axis=0)), np.zeros((0, 3), np.float32))


def test_symbolic_sizes_share_one_program(driver: VirtualCuda) -> None:
    from fluxir.ir.interp import interpret

    low = fx.jit(lambda x: fx.exp(x) / fx.sum(fx.exp(x), axis=1, keepdims=True), signature=(fx.f32["B", 9],)).lower()
    code = low.compile("sm_80")
    program = on_cuda(code)
    for n in (1, 4, 4, 4, 2, 1):
        x = f32(n, 9)
        close(program.call_flat([x]), interpret(low.module, [x]))


# ---- memory


def test_the_arena_has_exactly_the_planned_bytes(driver: VirtualCuda) -> None:
    _, code = compiled(mlp, *MLP)
    program = on_cuda(code)
    planned = sizes.evaluate(code.spec["host"]["functions"][code.spec["host"]["entry"]]["arena"], {})
    constants = sum(a.nbytes for a in code.constants)
    assert planned > 0
    assert driver.memory.used(0) == constants
    program.call_flat(list(MLP))
    outputs = 5 * 8 * 4
    assert driver.memory.used(0) == constants + planned + sum(a.nbytes for a in MLP) + outputs
    assert gpu(0).in_use == constants + planned, "arguments and results are given back"
    for _ in range(3):
        program.call_flat(list(MLP))
    allocations = driver.calls["cuMemAlloc_v2"]
    program.call_flat(list(MLP))
    assert driver.calls["cuMemAlloc_v2"] == allocations, "a call that looks like the one before allocates nothing"
    gpu(0).trim()
    assert driver.memory.used(0) == constants + planned


def test_a_program_gives_everything_back(driver: VirtualCuda) -> None:
    program = same(mlp, *MLP, rtol=1e-4, atol=1e-4)
    del program
    gc.collect()
    assert gpu(0).in_use == 0
    from fluxir.runtime import cuda

    cuda.close_all()
    gc.collect()
    assert driver.leaks() == []


def test_the_arena_grows_with_the_batch(driver: VirtualCuda) -> None:
    low = fx.jit(lambda x, w: fx.sum(fx.exp(x @ w) @ w, axis=0), signature=(fx.f32["B", 4], fx.f32[4, 4])).lower()
    code = low.compile("sm_80")
    program, w = on_cuda(code), f32(4, 4)
    arena = code.spec["host"]["functions"][code.spec["host"]["entry"]]["arena"]
    for n in (2, 8, 3):
        program.call_flat([f32(n, 4), w])
        assert gpu(0).in_use == sizes.evaluate(arena, {"B": max(2, 8 if n != 2 else 2)}) + sum(
            a.nbytes for a in code.constants
        )


def test_out_of_memory_names_both_numbers(driver_of: Drivers) -> None:
    driver = driver_of("sm_80", memory=2048)  # the first weights alone are 1536 bytes
    _, code = compiled(mlp, *MLP)
    program = on_cuda(code)
    held = gpu(0).in_use
    for _ in range(2):
        with pytest.raises(fx.FluxError, match="of 2048 are free") as e:
            program.call_flat(list(MLP))
        assert e.value.code == "FX0706"
        assert gpu(0).in_use == held, "what the call had is given back"
    small = f32(4)
    same(lambda x: x + 1, small)  # the device goes on
    assert not driver.detail


# ---- graphs


def test_a_static_program_is_replayed(driver: VirtualCuda) -> None:
    program = same(mlp, *MLP, calls=5, rtol=1e-4, atol=1e-4)
    assert program.held.replays is not None
    assert driver.calls["cuStreamBeginCapture_v2"] == 1
    assert driver.calls["cuGraphLaunch"] == 4
    work = len(program.spec["kernels"])
    assert driver.calls["cuLaunchKernel"] <= 2 * work + 2, "the first call launches, the second captures"


def test_graphs_can_be_switched_off(driver: VirtualCuda) -> None:
    from fluxir import config

    with config.override(gpu_graphs=False):
        same(mlp, *MLP, rtol=1e-4, atol=1e-4)
    assert not driver.calls["cuGraphLaunch"]


def test_a_graph_takes_the_new_values(driver: VirtualCuda) -> None:
    from fluxir.ir.interp import interpret

    module, code = compiled(mlp, *MLP)
    program = on_cuda(code)
    for _ in range(5):
        args = [f32(*a.shape) for a in MLP]
        close(program.call_flat(args), interpret(module, args), 1e-4, 1e-4)


# ---- several devices


def test_two_devices(driver_of: Drivers) -> None:
    driver = driver_of("sm_80", "sm_90")
    from fluxir.ir.interp import interpret
    from fluxir.runtime import cuda

    assert [(d.number, d.capability) for d in cuda.devices()] == [(0, 80), (1, 90)]
    assert cuda.target_of("cuda:1") == "sm_90"
    module, code80 = compiled(mlp, *MLP, target="sm_80")
    _, code90 = compiled(mlp, *MLP, target="sm_90")
    want = interpret(module, list(MLP))
    first, second, third = on_cuda(code80, "cuda:0"), on_cuda(code80, "cuda:1"), on_cuda(code90, "cuda:1")
    for p in (first, second, third, first):
        close(p.call_flat(list(MLP)), want, 1e-4, 1e-4)
    assert driver.memory.used(0) and driver.memory.used(1)
    with pytest.raises(fx.FluxError, match="FX0707"):
        on_cuda(code90, "cuda:0")
    with pytest.raises(fx.FluxError, match="FX0703"):
        on_cuda(code80, "cuda:2")


def test_threads_share_a_device(driver: VirtualCuda) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from fluxir.ir.interp import interpret

    module, code = compiled(mlp, *MLP)
    program = on_cuda(code)
    args = [[f32(*a.shape) for a in MLP] for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for got, given in zip(pool.map(program.call_flat, args), args):
            close(got, interpret(module, given), 1e-4, 1e-4)


# ---- errors


def test_what_the_jit_compiler_says_is_shown(driver: VirtualCuda) -> None:
    _, code = compiled(mlp, *MLP)
    from fluxir.runtime import cuda

    with pytest.raises(fx.FluxError) as e:
        cuda.load_program(code.spec, code.code.replace(b"ret;", b"rett;"), code.constants)
    assert e.value.code == "FX0704" and "ptxas application ptx input, line" in str(e.value)
    assert "rett" in str(e.value)


def broken_stores(code: Any) -> bytes:
    """The PTX with every store to global memory far off."""
    text, count = re.subn(r"(st\.global[.\w:]*\s+\[%rd\d+)(\+-?\d+)?\]", r"\1+1048576]", code.code.decode())
    assert count
    return str(text).encode()


def test_a_bad_access_names_the_kernel_and_the_users_line(driver: VirtualCuda) -> None:
    from fluxir.runtime import cuda

    _, code = compiled(lambda x: fx.sum(fx.exp(x) + 1), f32(64))
    program = cuda.load_program(code.spec, broken_stores(code), code.constants)
    with pytest.raises(fx.FluxError) as e:
        program.call_flat([f32(64)])
    assert e.value.code == "FX0708"
    assert code.spec["kernels"][0]["name"] in str(e.value) and "test_programs.py:" in str(e.value)
    with pytest.raises(fx.FluxError) as again:
        program.call_flat([f32(64)])
    assert again.value.code == "FX0708", "the context is lost for good"


def test_waiting_after_every_kernel_names_the_one_that_fails(driver: VirtualCuda) -> None:
    from fluxir import config
    from fluxir.runtime import cuda

    _, code = compiled(mlp, *MLP)
    program = cuda.load_program(code.spec, broken_stores(code), code.constants)
    with config.override(gpu_sync=True), pytest.raises(fx.FluxError) as e:
        program.call_flat(list(MLP))
    assert e.value.notes and e.value.notes[-1].count("test_programs.py") == 1
