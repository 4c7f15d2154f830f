"""The Python of kernels: control flow, functions, structs, numbers. Each kernel agrees on every device and with Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import fluxir as fx
from tests.kernel_harness import agree

N = 40
F = np.linspace(-2, 3, N).astype(np.float32)
I = np.arange(-20, 20, dtype=np.int32)


def zeros(dtype: str = "f4", n: int = N) -> np.ndarray:
    return np.zeros(n, dtype)


def test_vector_add() -> None:
    @fx.kernel
    def add(x: fx.f32["N"], y: fx.f32["N"], out: fx.f32["N"]):
        i = fx.gpu.global_id.x
        if i < len(out):
            out[i] = x[i] + y[i]

    agree(add, 3, 16, F, F[::-1].copy(), zeros(), want=[F + F[::-1]])


def test_returns_breaks_and_continues() -> None:
    @fx.kernel
    def k(x, out, n):
        i = fx.gpu.global_id(0)
        if i >= n:
            return
        total = 0
        for j in range(20):
            if j % 3 == 0:
                continue
            if j > x[i]:
                break
            total += j
        else:
            total += 1000
        while True:
            total += 1
            if total % 7 == 0:
                if total > 40:
                    return
                break
        out[i] = total

    def python(x: int) -> int:
        total = 0
        for j in range(20):
            if j % 3 == 0:
                continue
            if j > x:
                break
            total += j
        else:
            total += 1000
        while True:
            total += 1
            if total % 7 == 0:
                if total > 40:
                    return 0
                break
        return total

    agree(k, 3, 16, I, zeros("i4"), N, want=[np.array([python(v) for v in I], "i4")])


def test_loops_with_steps_that_are_known_and_not() -> None:
    @fx.kernel
    def k(out, a, b, step):
        t = fx.gpu.thread_id.x
        s = 0
        for i in range(a, b, step):
            s = s * 3 + i + t
        for i in range(10, 0, -3):
            s += i
        for i in range(t):
            for j in range(i, t, 2):
                s += i * j
        out[t] = s

    for a, b, step in ((0, 10, 3), (10, -5, -4), (5, 5, 1), (3, 0, 1)):
        want = []
        for t in range(8):
            s = 0
            for i in range(a, b, step):
                s = s * 3 + i + t
            s += sum(range(10, 0, -3))
            s += sum(i * j for i in range(t) for j in range(i, t, 2))
            want.append(s)
        agree(k, 1, 8, zeros("i8", 8), a, b, step, want=[np.array(want)])


def test_short_circuits_and_ternaries_do_not_read_out_of_bounds() -> None:
    @fx.kernel
    def k(x, out):
        i = fx.gpu.global_id.x
        good = i < len(x) and x[i] > 0 and not x[i] > 2
        bad = i >= len(x) or x[i] < 0
        y = x[i] * 2 if i < len(x) else -1.0
        if i < len(out):
            out[i] = (y if good else y + 100.0) + (0.5 if bad else 0.0) + (1.0 if 0 <= i < 4 else 0.0)

    x = F[:30]
    i = np.arange(48)
    inside = i < 30
    v = np.where(inside, np.pad(x, (0, 18)), 0)
    good = inside & (v > 0) & ~(v > 2)
    bad = ~inside | (v < 0)
    y = np.where(inside, v * 2, -1).astype(np.float32)
    want = np.where(good, y, y + np.float32(100)) + np.where(bad, 0.5, 0) + np.where(i < 4, 1, 0)
    agree(k, 3, 16, x, zeros(n=48), want=[want.astype(np.float32)])


class Pair(NamedTuple):
    lo: float
    hi: float


@dataclass(frozen=True)
class Box:
    pair: Pair
    scale: float = 2.0


SCALE = 3
WEIGHTS = np.array([1.0, 2.0, 4.0], np.float32)


def _middle(p: Pair) -> float:
    return (p.lo + p.hi) / 2


def _clamped(x, p: Pair, *, twice: bool = False):
    if x < p.lo:
        return p.lo
    if twice:
        x = x * 2
    return min(x, p.hi)


def test_functions_structs_tuples_and_closures() -> None:
    offset = 0.25
    box = Box(Pair(-1.0, 1.5))

    @fx.kernel
    def k(x, p: Pair, out):
        def twice(v):
            return v + v

        i = fx.gpu.global_id.x
        if i >= x.size:
            return
        pair = Pair(p.hi, p.lo)
        a, (b, c) = _clamped(x[i], box.pair, twice=True), (pair.lo, pair.hi)
        square = lambda v: v * v  # noqa: E731
        q = Box(Pair(a, b), scale=c)
        total = twice(a) + square(b) * SCALE + q.scale + q.pair[1] + offset + _middle(box.pair)
        for j, w in enumerate((1, 2, 3)):
            total += w * WEIGHTS[j]
        for j in fx.gpu.static_range(3):
            total += (0.5, 0.25, 0.125)[j]
        out[i] = total

    class Given(NamedTuple):
        lo: float
        hi: float

    def python(v: np.float32) -> float:
        v = min(v * 2, 1.5) if v >= -1 else -1.0
        return 2 * v + 9 * 3 + 2 + 3 + 0.25 + 0.25 + (1 + 4 + 12) + 0.875

    agree(k, 3, 16, F, Pair(2.0, 3.0), zeros(), want=[np.array([python(v) for v in F], "f4")], tol=1e-6)


def test_arrays_may_be_swapped_in_a_loop_and_rows_taken() -> None:
    @fx.kernel
    def k(a: fx.f32["M", "N"], b: fx.f32["M", "N"], n):
        i = fx.gpu.thread_id.x
        src, dst = a, b
        for _ in range(n):
            row = dst[1]
            row[i] = src[0, i] + 1
            dst[0][i] = src[-1][i] * 2
            src, dst = dst, src

    a = np.arange(16, dtype=np.float32).reshape(2, 8)
    x, y = a.copy(), np.zeros_like(a)
    for _ in range(3):
        y[1] = x[0] + 1
        y[0] = x[1] * 2
        x, y = y, x
    agree(k, 1, 8, a, np.zeros_like(a), 3, want=[y, x])


def test_integers_divide_and_shift_as_python_and_mix_with_numbers() -> None:
    @fx.kernel
    def k(x, out):
        i = fx.gpu.thread_id.x
        v = x[i]
        out[0, i] = v // 3 + v % 5
        out[1, i] = (v << 2) ^ (v >> 1) | (v & 7)
        out[2, i] = abs(v) ** 2 - (-v) + ~v
        out[3, i] = max(v, 3, i) + min(i // 2, v) + i % 3
        out[4, i] = fx.u8(v) + fx.gpu.bitcast(v, fx.u32) % 7 + int(v > 2)

    v, i = I.astype(np.int64), np.arange(N)
    rows = [v // 3 + v % 5, (v << 2) ^ (v >> 1) | (v & 7), v * v + v + ~v, np.maximum(np.maximum(v, 3), i)]
    rows[3] = rows[3] + np.minimum(i // 2, v) + i % 3
    rows.append(I.astype(np.uint8) + I.view(np.uint32).astype(np.int64) % 7 + (v > 2))
    agree(k, 1, N, I, np.zeros((5, N), "i8"), want=[np.stack(rows)])


def test_mathematics_of_every_module() -> None:
    @fx.kernel
    def k(x, out):
        i = fx.gpu.thread_id.x
        v = abs(x[i]) + 0.5
        out[i] = (
            math.sqrt(v) + np.exp(-v) + fx.sin(v) * math.cos(v) + fx.rsqrt(v) + math.log(v) + fx.where(v > 1, v, -v)
            + np.floor(v) + fx.gpu.fma(v, v, 1.0) + np.maximum(v, 1.0) + fx.tanh(v) + math.pi + v**3 + fx.erf(v)
        )  # fmt: skip

    v = np.abs(F.astype(np.float64)) + 0.5
    erf = np.array([math.erf(t) for t in v])
    want = np.sqrt(v) + np.exp(-v) + np.sin(v) * np.cos(v) + 1 / np.sqrt(v) + np.log(v) + np.where(v > 1, v, -v)
    want += np.floor(v) + v * v + 1 + np.maximum(v, 1) + np.tanh(v) + math.pi + v**3 + erf
    agree(k, 1, N, F, zeros(), want=[want.astype("f4")], tol=2e-6)


@pytest.mark.parametrize("dtype", ["f2", ml_dtypes.bfloat16, "f8", "i1", "u8"])
def test_element_types(dtype: object) -> None:
    @fx.kernel
    def k(x, y, out):
        i = fx.gpu.thread_id.x
        out[i] = x[i] * y[i] + 1 if x[i] < y[i] else x[i] - y[i]

    x = (np.arange(24) % 7).astype(dtype)
    y = (np.arange(24) % 5).astype(dtype)
    agree(k, 1, 24, x, y, np.zeros(24, dtype), want=[np.where(x < y, x * y + np.ones(1, dtype), x - y)])


def test_bools_vectors_and_local_memory() -> None:
    @fx.kernel
    def k(x, flags, out):
        i = fx.gpu.thread_id.x
        v = x.load(i * 4, lanes=4)
        w = fx.gpu.vector(v[3], v[2], v[1], v[0])
        flags[i] = v[0] > v[1] or flags[i]
        keep = fx.gpu.local((4,), fx.f32, zero=True)
        for j in range(4):
            if j != i % 4:
                keep[j] = x[i * 4 + j]
        s = 0.0
        for j in range(4):
            s += keep[(j + i) % 4]
        out.store(i * 4, v * 2.0 + w + s)

    x = np.arange(32, dtype=np.float32)
    rows = x.reshape(8, 4)
    kept = rows.copy()
    kept[np.arange(8), np.arange(8) % 4] = 0
    want = rows * 2 + rows[:, ::-1] + kept.sum(1, keepdims=True)
    flags = np.arange(8) % 2 == 0
    agree(k, 1, 8, x, flags, np.zeros(32, "f4"), want=[flags, want.ravel()])


def test_a_loop_gives_its_variables_the_types_they_need() -> None:
    @fx.kernel
    def k(x, y, out):
        i = fx.gpu.thread_id.x
        total = 0
        wide = 0.0
        seen = False
        for j in range(len(x)):
            total += x[j]
            wide = wide + y[j]
            seen = seen or x[j] > 2.5
        out[i] = fx.f64(total) + wide + float(seen)

    y = F.astype(np.float64)
    want = np.float64(sum(F, np.float32(0))) + np.float64(sum(y)) + 1
    agree(k, 1, 2, F, y, zeros("f8", 2), want=[np.full(2, want)], tol=1e-9)


def test_static_decisions_and_constant_arguments() -> None:
    @fx.kernel
    def k(x, out, op, mode=None):
        i = fx.gpu.thread_id.x
        if mode is None:
            out[i] = op(x[i])
        elif mode in ("twice", "double"):
            out[i] = op(op(x[i]))
        else:
            out[i] = mode * x[i]

    agree(k, 1, N, F, zeros(), np.negative, want=[-F])
    agree(k, 1, N, F, zeros(), lambda v: v + 1, "twice", want=[F + 1 + 1])
    agree(k, 1, N, F, zeros(), abs, 3.0, want=[F * 3])


def test_grids_and_blocks_of_three_axes() -> None:
    @fx.kernel
    def k(out):
        x, y, z = fx.gpu.global_id.x, fx.gpu.global_id.y, fx.gpu.global_id.z
        out[z, y, x] = (
            fx.gpu.thread_id(0) + 10 * fx.gpu.thread_id(1) + 100 * fx.gpu.thread_id(2) + 1000 * fx.gpu.block_id.x
            + 10000 * fx.gpu.block_id.y + 100000 * fx.gpu.block_id.z + 1000000 * fx.gpu.grid_dim.y + fx.gpu.block_dim.z
        )  # fmt: skip

    z, y, x = np.indices((4, 6, 8))
    want = x % 4 + 10 * (y % 2) + 100 * (z % 2) + 1000 * (x // 4) + 10000 * (y // 2) + 100000 * (z // 2) + 3000000 + 2
    agree(k, (2, 3, 2), (4, 2, 2), np.zeros((4, 6, 8), "i4"), want=[want])
