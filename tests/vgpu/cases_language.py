"""Cases of `kernels/language.cu`, optimised and as for a debugger."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from tests.vgpu.case import Launch, Out, case
from tests.vgpu.cases_elementwise import F, Rng, blocks

I = np.int32
BOTH = "language language_debug"
POINT = np.dtype([("x", F), ("y", F), ("id", I), ("tag", np.int16), ("other", np.int16)])


@case(BOTH, "structs", (1,), (70,), deep=[(5000,)])
def structs(rng: Rng, n: int) -> Launch:
    p = np.zeros(n, POINT)
    p["x"], p["y"] = rng.normal(size=(2, n))
    p["id"], p["tag"], p["other"] = rng.integers(-(2**31), 2**31, n), rng.integers(-9000, 9000, n), range(n)
    q, want = np.roll(p, -1), p.copy()
    want["x"], want["y"] = (p["x"] + q["x"]) * F(0.5), (p["y"] + q["y"]) * F(0.5)
    want["id"], want["tag"] = p["id"] ^ q["id"], p["tag"] - q["tag"]
    low, high, axis = rng.integers(-9, 9, 3) / 4, rng.integers(-9, 9, 3) / 4, 7
    box = low.tobytes() + high.tobytes() + bytes([axis]) + bytes(7)
    inside = np.array([low[j % 3] * axis + high[(j + axis) % 3] for j in range(n)])  # exact, contracted or not
    args = [p.view(np.uint8), Out(16 * n, np.uint8), box, Out(n, np.float64), n]
    return Launch(blocks(n, 64), 64, args, {1: want.view(np.uint8), 3: inside})


def ackermann(m: int, n: int) -> int:
    return n + 1 if m == 0 else ackermann(m - 1, 1 if n == 0 else ackermann(m, n - 1))


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@case(BOTH, "recursion", (32,), deep=[(200,)])
def recursion(rng: Rng, n: int) -> Launch:
    want = [[ackermann(i % 3, i % 5), fibonacci(i % 10)] for i in range(n)]
    return Launch(1, n, [Out((n, 2), np.uint64)], {0: np.array(want)})


@case(BOTH, "function_pointers", (1,), (100,), deep=[(5000,)])
def function_pointers(rng: Rng, n: int) -> Launch:
    x, y = rng.normal(size=(2, n)).astype(F)
    which = rng.integers(0, 4, n).astype(I)
    want = np.choose(which, [x + y, x - y, x * y, np.minimum(x, y)])
    return Launch(blocks(n, 64), 64, [x, y, which, Out(n), n], {3: want})


@case(BOTH, "local_sort", (1,), (40,), deep=[(2000,)])
def local_sort(rng: Rng, rows: int) -> Launch:
    x = rng.integers(-99, 99, (rows, 12)).astype(I)
    return Launch(blocks(rows, 32), 32, [x, Out(x.shape, I), rows], {1: np.sort(x)})


@case(BOTH, "tables", (5,), (100,), deep=[(5000,)])
def tables(rng: Rng, n: int) -> Launch:
    x = rng.integers(-9, 9, n).astype(F)
    want = sum(w * np.roll(x, -j) for j, w in enumerate((1, -4, 6, -4, 1)))
    primes = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53]
    codes = []
    for i in range(n):
        h = 0
        for c in (b"one", b"three", b"twentytwo", b"")[i % 4]:
            h = h * 31 + c
        codes.append(h + primes[i % 16] + (-2, 300, 7, -32768)[i % 4])
    wrapped = (np.array(codes) & 0xFFFFFFFF).astype(np.uint32).view(I)
    return Launch(blocks(n, 64), 64, [x, Out(n), Out(n, I), n], {1: want, 2: wrapped})


def _jump(op: int, v: int) -> int:
    if op == 8:
        while v > 10:
            v //= 3
        return v
    return {
        0: v * v, 1: ~v, 2: v << 3, 3: v // 7 - 100, 4: v - 100, 5: v.bit_count(), 6: int(f"{v:032b}"[::-1], 2),
        7: 32 - v.bit_length(), 9: -9,
    }.get(op, -1)  # fmt: skip


@case(BOTH, "jump_table", (1,), (200,), deep=[(5000,)])
def jump_table(rng: Rng, n: int) -> Launch:
    op = rng.integers(-2, 12, n).astype(I)
    want = np.array([_jump(int(o), i) for i, o in enumerate(op)]) & 0xFFFFFFFF
    return Launch(blocks(n, 64), 64, [op, Out(n, I), n], {1: want.astype(np.uint32).view(I)})


@case(BOTH, "dynamic_shared", (1,), (100,), deep=[(3000,)])
def dynamic_shared(rng: Rng, n: int) -> Launch:
    x = rng.integers(-(2**31), 2**31, n).astype(I)
    want = x[::-1] + np.roll(x.astype(np.int16), -1).astype(I)
    return Launch(1, 64, [x, Out(n, I), n], {1: want}, shared=6 * n)


@case(BOTH, "talk", (0,), (3,))
def talk(rng: Rng, n: int) -> Launch:
    x = rng.integers(-1000, 1000, max(n, 1)).astype(I)
    lines = [
        f"{i}: x={v} hex={v * 17 & 0xFFFFFFFF:08x} f={v / 8:.3f} {'odd' if i & 1 else 'even'} {v << 33} {chr(97 + i)}%\n"
        for i, v in enumerate(x[:n].tolist())
    ]
    return Launch(1, 32, [x, n], {}, printed="".join(lines))


def wrap(v: int, bits: int = 32) -> int:
    """Two's complement."""
    v &= (1 << bits) - 1
    return v - (1 << bits) if v >> (bits - 1) else v


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def parts(v: int, width: int, signed: bool) -> list[int]:
    out = [v >> s & (1 << width) - 1 for s in range(0, 32, width)]
    return [wrap(x, width) for x in out] if signed else out


def packed(values: Any, width: int) -> int:
    return sum((v & (1 << width) - 1) << width * i for i, v in enumerate(values))


def permuted(a: int, b: int, selector: int) -> int:
    source = [x for v in (a, b) for x in parts(v & 0xFFFFFFFF, 8, False)]
    return packed([source[s & 7] for s in parts(selector, 4, False)[:4]], 8)


def _integers(a: int, b: int, i: int) -> list[int]:
    """What `integers` says of one pair, in its order."""
    M, M64 = 0xFFFFFFFF, (1 << 64) - 1
    ua, ub, p, q = a & M64, b & M64, wrap(a), wrap(b)
    up, uq, s = p & M, q & M, i & 31
    wide = uq << 32 | up
    dot = lambda x, y, signed: sum(u * v for u, v in zip(parts(x, 8, signed), parts(y, 8, signed)))  # noqa: E731
    s16 = lambda v: wrap(v, 16)  # noqa: E731
    rows = [
        quotient(a, b), a - quotient(a, b) * b, ua // ub, ua % ub, a * b >> 64, ua * ub >> 64, wrap(p * q >> 32), up * uq >> 32,
        wrap(wrap(p, 24) * wrap(q, 24)), (up & 0xFFFFFF) * (uq & 0xFFFFFF) & M, ua.bit_count(), 64 - ua.bit_length(),
        (ua & -ua).bit_length(), int(f"{ua:064b}"[::-1], 2), permuted(up, uq, 0x3715), permuted(up, uq, 0x9B0E),
        (wide << s) >> 32 & M, wide >> s & M, ((wide << min(i, 32)) >> 32) & M,
        abs(p - q) + 3 & M, abs(up - uq) + 3 & M, p + q >> 1, up + uq + 1 >> 1, wrap(dot(up, uq, True) + 7), dot(up, uq, False) + 7 & M,
        wrap(s16(up) * wrap(uq, 8) + s16(up >> 16) * wrap(uq >> 8, 8) + 7), p >> (uq & 31), up >> (uq & 31), wrap(a << (uq & 63), 64),
        wrap(up, 8) * (uq & 0xFF), quotient(s16(up), s16(uq) | 1),
        packed([x + y for x, y in zip(parts(up, 8, False), parts(uq, 8, False))], 8),
        packed([abs(x - y) for x, y in zip(parts(up, 8, False), parts(uq, 8, False))], 8),
        packed([max(x, y) for x, y in zip(parts(up, 16, True), parts(uq, 16, True))], 16),
        packed([255 * (x > y) for x, y in zip(parts(up, 8, False), parts(uq, 8, False))], 8),
        max(p, q) - min(up, uq) & M, wrap(abs(p)) + abs(b),
    ]  # fmt: skip
    return [wrap(r, 64) for r in rows]


@case(BOTH, "integers", (40,), deep=[(400,)])
def integers(rng: Rng, n: int) -> Launch:
    x, y = rng.integers(-(2**63) + 1, 2**63, (2, n)) >> rng.integers(0, 60, (2, n))
    y = np.where(y == 0, 3, y)
    want = np.array([_integers(int(a), int(b), i) for i, (a, b) in enumerate(zip(x, y))]).T
    return Launch(blocks(n, 32), 32, [x, y, Out(want.shape, np.int64), n], {2: want})


def nearest(v: Fraction, mode: str, kind: Any = F) -> Any:
    """The value of a floating point type for an exact one: mode n(earest, even), z(ero), u(p) or d(own)."""
    x = kind(float(v))
    if Fraction(float(x)) == v:
        return x
    low = x if Fraction(float(x)) < v else np.nextafter(x, kind(-np.inf))
    high = np.nextafter(low, kind(np.inf))
    if mode == "d" or (mode == "z" and v > 0):
        return low
    if mode == "u" or mode == "z":
        return high
    below, above = v - Fraction(float(low)), Fraction(float(high)) - v
    if below != above:
        return low if below < above else high
    return low if low.view(f"u{low.itemsize}") % 2 == 0 else high


def clipped(v: float, bits: int, signed: bool, rounding: Callable[[float], int] = math.trunc) -> int:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return max(low, min(high, rounding(v) if math.isfinite(v) else (high if v > 0 else low)))


@case(BOTH, "conversions", (60,), deep=[(400,)])
def conversions(rng: Rng, n: int) -> Launch:
    x = rng.normal(size=n) * 10.0 ** rng.integers(-2, 12, n)
    x[:9] = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, 1e300, -1e300, 4294967295.5]
    with np.errstate(all="ignore"):
        f = x.astype(F)
    bits = lambda v: int(F(v).view(I))  # noqa: E731
    out, wide = [], []
    for d, g in zip(x.tolist(), f):
        s = float(g)
        low = clipped(s, 32, True)
        big = {m: bits(_to_float(d, m)) for m in "nzud"}
        out.append([
            clipped(d, 32, True), clipped(d, 32, False), clipped(d, 64, True), wrap(clipped(d, 64, False), 64),
            low, clipped(s, 32, False), clipped(s, 64, True), wrap(low, 8), clipped(s, 32, True, round), clipped(s, 32, True, math.ceil),
            clipped(s, 32, True, math.floor), clipped(s, 64, True), big["n"], big["z"], big["u"], big["d"],
            bits(nearest(Fraction(clipped(d, 64, True)), "n")), bits(nearest(Fraction(low & 0xFFFFFFFF), "z")),
            wrap(int(np.float64(d).view(np.int64)) >> 32), wrap(int(np.float64(d).view(np.int64))),
        ])  # fmt: skip
        away = lambda v: v if math.isinf(v) else math.copysign(math.floor(abs(Fraction(v)) + Fraction(1, 2)), v)  # noqa: E731
        wide.append([np.floor(d), np.ceil(d), np.trunc(d), np.rint(d), np.floor(g), np.ceil(g), np.trunc(g), np.rint(g),
                     away(d), away(s), min(max(s, 0.0), 1.0) + 0.0])  # fmt: skip
    args = [x, Out((20, n), np.int64), Out((11, n), np.float64), n]
    return Launch(blocks(n, 32), 32, args, {1: np.array(out).T, 2: np.array(wide).T})


def _to_float(d: float, mode: str) -> Any:
    most = np.finfo(F).max
    if abs(d) < 3e38:
        return nearest(Fraction(d), mode) if d else F(d)  # zero keeps its sign
    if mode == "n" or (mode == "u" and d > 0) or (mode == "d" and d < 0):
        return F(np.inf) if d > 0 else F(-np.inf)
    return most if d > 0 else -most


@case(BOTH, "ieee", (40,), deep=[(300,)])
def ieee(rng: Rng, n: int) -> Launch:
    x, y, z = (rng.normal(size=(3, n)) * 10.0 ** rng.integers(-4, 5, (3, n))).astype(F)
    x[:3], y[:3], z[:3] = [1e-40, 3e-39, 1.0], [2e-5, 1e-37, -1e-30], [1e-45, -1e-40, 1e-40]
    u, v = rng.normal(size=(2, n)) * 10.0 ** rng.integers(-9, 9, (2, n))
    rows, wide = [], []
    for a, b, c, d, e in zip(x, y, z, u, v):
        A, B, C, D, E = (Fraction(float(t)) for t in (a, b, c, d, e))
        exact = [(A + B, m) for m in "nzud"] + [(A * B, m) for m in "nzud"] + [(A * B + C, m) for m in "nzud"]
        exact += [(A / B, "n"), (A / B, "z")]
        root = np.sqrt(abs(a))
        up = root if Fraction(float(root)) ** 2 >= abs(A) else np.nextafter(root, F(np.inf))
        even = round(A / B)
        rows.append([
            *(nearest(t, m) for t, m in exact), root, up, nearest(1 / B, "n"), np.minimum(a, b), np.maximum(a, b), np.copysign(a, b),
            np.fmod(a, b), nearest(A - even * B, "n"), np.nextafter(a, b), nearest(A * Fraction(2) ** (len(rows) % 40 - 20), "n"),
        ])  # fmt: skip
        wide.append([d + e, d * e, nearest(D * E + 1, "n", np.float64), d / e, np.sqrt(abs(d)), 1 / e, np.fmod(d, e)])
    out, wout = np.array(rows, F).T, np.array(wide).T
    args = [x, y, z, Out(out.shape), u, v, Out(wout.shape, np.float64), n]
    return Launch(blocks(n, 32), 32, args, {3: out, 6: wout})


@case("language", "math", (60,), deep=[(2000,)])
def mathematics(rng: Rng, n: int) -> Launch:
    x, u = (3 * rng.normal(size=n)).astype(F), 3 * rng.normal(size=n)
    a, b = x.astype(np.float64), abs(x.astype(np.float64))
    each = lambda f, v: np.array([f(t) for t in v])  # noqa: E731
    rows = [
        np.exp(a), np.log(b), np.sin(a), np.cos((x * F(1e6)).astype(np.float64)), np.tanh(a), b ** np.float64(F(1.7)), each(math.erf, a),
        np.cbrt(a), np.arctan2(a, F(0.3)), np.log1p(b), each(math.lgamma, b), a / F(3.3), np.sqrt(b), b**-0.5, np.exp(a), np.sin(a),
        np.log(b), a / F(1.7),
    ]  # fmt: skip
    wide = [np.exp(u), np.sin(u), np.log(abs(u)), abs(u) ** 0.3, np.tanh(u), 1 / u, np.sqrt(abs(u))]

    def close(
        got: np.ndarray,
    ) -> bool:  # units in the last place of the CUDA guide; absolute where fast versions lose digits
        want = np.stack(rows)
        error = abs(got - want) / np.spacing(abs(want).astype(F)).astype(np.float64)
        expf = abs(got - want)[14] <= (3 + abs(1.173 * x)) * np.spacing(want[14].astype(F))
        sinf, logf = abs(got - want)[15] <= 1e-4, abs(got - want)[16] <= 1e-5
        return bool((error[:14] <= 8).all() and expf.all() and sinf.all() and logf.all() and (error[17] <= 4).all())

    def close_wide(got: np.ndarray) -> bool:
        return bool((abs(got - np.stack(wide)) <= 4 * np.spacing(abs(np.stack(wide)))).all())

    args = [x, Out((18, n)), u, Out((7, n), np.float64), n]
    return Launch(blocks(n, 32), 32, args, {1: close, 3: close_wide})


@case(BOTH, "virtual_functions", (1,), (50,), deep=[(2000,)])
def virtual_functions(rng: Rng, n: int) -> Launch:
    x = rng.integers(-9, 9, n).astype(F)
    return Launch(blocks(n, 32), 32, [x, Out(n), n], {1: np.where(x > 0, x * x + 4, x * F(1.5) + 3)})
