"""SIMT kernels as CPU kernels: what the lowering makes of meetings, masks, guards and loops, and what it refuses.

The lowered kernel is itself loop IR: it verifies, and the interpreter runs it with the same results as the SIMT kernel.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.ir.core import Func, Module
from fluxir.ir.interp import Interpreter, bind_dims
from fluxir.ir.verify import verify_func
from fluxir.kernels import Kernel
from fluxir.schedule.simt_cpu import on_cpu
from tests.kernel_harness import agree, interpreted


def lowered(k: Kernel, block: tuple[int, ...], *args: Any) -> Func:
    f = on_cpu(k.func(*args), block)
    verify_func(f)
    return f


def names(f: Func) -> list[str]:
    return [op.name for op in f.walk()]


def both_interpreted(k: Kernel, grid: int, block: int, *args: Any) -> None:
    """The SIMT kernel and the loops it becomes, both by the interpreter."""
    mine, other = copy.deepcopy(args), copy.deepcopy(args)
    interpreted(k, grid, block, mine)
    f = lowered(k, (block,), *args)
    it = Interpreter(Module(f.name, {f.name: f}), bind_dims(k.func(*args), [np.shape(a) for a in other]))
    it.run(f.block, [*other, *[np.int64(n) for n in (grid, 1, 1)]], {})
    for x, y in zip(mine, other, strict=True):
        np.testing.assert_array_equal(x, y)


@fx.kernel
def scale(x: fx.f32["N"], out: fx.f32["N"]):
    i = fx.gpu.global_id.x
    if i >= len(x):
        return
    out[i] = x[i] * 2


def test_a_guarded_kernel_is_a_loop_over_just_its_threads() -> None:
    x = np.arange(21, dtype="f4")
    f = scale.build(x, x).loops((8,), 0)
    assert "if" not in names(f) and names(f).count("for") == 1 and names(f).count("parallel") == 1
    for grid in (1, 3, 5):
        both_interpreted(scale, grid, 8, x, np.zeros(21, "f4"))
        agree(scale, grid, 8, x, np.zeros(21, "f4"), devices=("cpu",))


def test_guards_along_two_axes_and_a_loop_in_them() -> None:
    @fx.kernel
    def product(a: fx.f32["M", "K"], b: fx.f32["K", "N"], c: fx.f32["M", "N"]):
        i, j = fx.gpu.global_id.y, fx.gpu.global_id.x
        if i < c.shape[0] and j < c.shape[1]:
            total = 0.0
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            c[i, j] = total

    rng = np.random.default_rng(3)
    a, b = rng.integers(-4, 5, (9, 6)).astype("f4"), rng.integers(-4, 5, (6, 13)).astype("f4")
    f = product.build(a, b, np.zeros((9, 13), "f4")).loops((4, 2), 0)
    assert "if" not in names(f)
    agree(product, (4, 5), (4, 2), a, b, np.zeros((9, 13), "f4"), want=[a @ b])


def test_a_loop_of_neighbouring_elements_runs_across_the_threads() -> None:
    @fx.kernel
    def sums(a: fx.f32["K", "N"], out: fx.f32["N"], s: fx.f32["N"]):
        t = fx.gpu.thread_id.x
        total = 0.0
        for k in range(a.shape[0]):
            total += a[k, t]
        out[t] = total
        fx.gpu.barrier()
        s[t] = out[(t + 1) % 8]

    @fx.kernel
    def rows(a: fx.f32["N", "K"], out: fx.f32["N"]):
        t = fx.gpu.thread_id.x
        total = 0.0
        for k in range(a.shape[1]):
            total += a[t, k]
        out[t] = total

    a = np.arange(40, dtype="f4").reshape(5, 8)
    outer = [
        op
        for op in lowered(sums, (8,), a, a[0], a[0]).walk()
        if op.name == "for" and any(o.name == "for" for o in op.blocks[0].walk())
    ]
    assert len(outer) == 1 and outer[0].operands[1].owner is not None and outer[0].operands[1].owner.name == "dim"
    inner = [op for op in lowered(rows, (8,), a.T.copy(), a[0]).walk() if op.name == "for"]
    assert inner[0].operands[1].owner is not None and inner[0].operands[1].owner.name == "const", (
        "rows: a thread at a time"
    )
    agree(sums, 1, 8, a, np.zeros(8, "f4"), np.zeros(8, "f4"), want=[a.sum(0), np.roll(a.sum(0), -1)])
    agree(rows, 1, 8, a.T.copy(), np.zeros(8, "f4"), want=[a.sum(0)])


def test_control_flow_that_all_threads_take_alike_needs_no_mask() -> None:
    @fx.kernel
    def k(x, out, n):
        s = fx.gpu.shared((16,), fx.f32)
        t = fx.gpu.thread_id.x
        for i in range(n):
            if i % 2 == 0:
                s[t] = x[t]
                fx.gpu.barrier()
                out[t] += s[15 - t]
                fx.gpu.barrier()

    x = np.arange(16, dtype="f4")
    f = lowered(k, (16,), x, x, 3)
    bools = [op for op in f.walk() if op.name == "alloc" and op.attrs.type.dtype.is_bool]
    assert not bools and "while" not in names(f)
    agree(k, 1, 16, x, np.zeros(16, "f4"), 3, want=[2 * x[::-1]])


def test_threads_that_part_meet_under_a_mask() -> None:
    @fx.kernel
    def k(x, out):
        s = fx.gpu.shared((16,), fx.f32)
        t = fx.gpu.thread_id.x
        s[t] = x[t]
        rounds = 0
        while s[t] > 0:
            s[t] = s[t] - 1
            fx.gpu.syncwarp(fx.gpu.activemask())
            rounds += 1
        out[t] = rounds

    x = np.array([3, 0, 5, 1] * 4, "f4")
    f = lowered(k, (16,), x, np.zeros(16, "i4"))
    assert any(op.name == "alloc" and op.attrs.type.dtype.is_bool for op in f.walk()) and "while" in names(f)
    both_interpreted(k, 1, 16, x, np.zeros(16, "i4"))
    agree(k, 1, 16, x, np.zeros(16, "i4"), want=[x.astype("i4")])


def test_what_cannot_run_there_is_refused_with_a_reason() -> None:
    @fx.kernel
    def chosen(a: fx.f32["N"], b: fx.f32["N"]):
        i = fx.gpu.thread_id.x
        src = a if a[i] > 0 else b
        fx.gpu.barrier()
        a[i] = src[i]

    @fx.kernel
    def part(a, b, c):
        c[0] = fx.gpu.mma(fx.gpu.mma_load_a(a, 0, 0), fx.gpu.mma_load_b(b, 0, 0), fx.gpu.mma_zero())[0]

    x = np.ones(8, "f4")
    with pytest.raises(fx.FluxError, match=r"FX0334.*an array that is chosen at run time lives across a barrier"):
        chosen.on("cpu")[1, 8](x, x.copy())
    a = np.ones((16, 16), "f2")
    with pytest.raises(fx.FluxError, match=r"FX0334.*mma needs whole warps; a block has 40 threads"):
        part.on("cpu")[1, 40](a, a, np.zeros(1, "f4"))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    from fluxir import config

    @fx.kernel
    def k(x, out):
        s = fx.gpu.shared((64,), fx.f32)
        t = fx.gpu.thread_id.x
        s[t] = x[fx.gpu.global_id.x]
        fx.gpu.barrier()
        out[fx.gpu.global_id.x] = s[63 - t]

    x = np.random.default_rng(1).standard_normal(64 * 300).astype("f4")
    found = []
    for threads in (1, 2, 4):
        out = np.zeros_like(x)
        with config.override(num_threads=threads):
            k.on("cpu")[300, 64](x, out)
        found.append(out)
    np.testing.assert_array_equal(found[0], x.reshape(300, 64)[:, ::-1].ravel())
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
