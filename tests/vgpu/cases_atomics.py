"""Cases of `kernels/atomics.cu`."""

from __future__ import annotations

import numpy as np

from tests.vgpu.case import BF16, Launch, Out, case
from tests.vgpu.cases_elementwise import F, Rng, blocks

I, U, W = np.int32, np.uint32, np.uint64
BOTH = "atomics atomics_90"


def fold(f: np.ufunc, start: np.ndarray, values: np.ndarray, slots: int) -> np.ndarray:
    out = start.copy()
    f.at(out, np.arange(len(values)) % slots, values)
    return out


def wrapped(start: np.ndarray, n: int, slots: int, step: object) -> np.ndarray:
    out = start.copy()
    for i in range(n):
        out[i % slots] = step(int(out[i % slots]))  # type: ignore[operator]
    return out


@case(BOTH, "integers", (1, 1), (300, 7), deep=[(5000, 40)])
def integers(rng: Rng, n: int, slots: int) -> Launch:
    x = rng.integers(-(2**31), 2**31, n).astype(I)
    rows = rng.integers(-(2**31), 2**31, (7, slots)).astype(I)
    urows = rng.integers(0, 9, (5, slots)).astype(U)
    wide = rng.integers(0, 2**64, (8, slots), dtype=W)
    u, w = x.view(U), x.view(U).astype(W) * W(0x9E3779B97F4A7C15)
    operations = (np.add, np.subtract, np.minimum, np.maximum, np.bitwise_and, np.bitwise_or, np.bitwise_xor)
    want = np.stack([fold(f, r, x, slots) for f, r in zip(operations, rows)])
    uwant = [fold(f, r, u, slots) for f, r in zip((np.add, np.minimum, np.maximum), urows)]
    uwant.append(wrapped(urows[3], n, slots, lambda old: 0 if old >= 6 else old + 1))
    uwant.append(wrapped(urows[4], n, slots, lambda old: 6 if old == 0 or old > 6 else old - 1))
    operations = (np.add, np.minimum, np.maximum, np.bitwise_and, np.bitwise_or, np.bitwise_xor)
    wwant = [fold(f, r, w, slots) for f, r in zip(operations, wide)]
    wwant.append(fold(np.maximum, wide[6].view(np.int64), w.view(np.int64), slots).view(W))
    wwant.append(fold(np.minimum, wide[7].view(np.int64), w.view(np.int64), slots).view(W))
    args = [x, rows, urows, wide, n, slots]
    return Launch(blocks(n, 64), 64, args, {1: want, 2: np.stack(uwant), 3: np.stack(wwant)})


@case(BOTH, "tickets", (100,), deep=[(3000,)])
def tickets(rng: Rng, n: int) -> Launch:
    # which thread gets which ticket is the machine's choice
    return Launch(
        blocks(n, 32), 32, [np.zeros(1, U), Out(n, I), n], {0: [n], 1: lambda got: (np.sort(got) == np.arange(n)).all()}
    )


@case(BOTH, "floats", (1, 1), (200, 9), deep=[(4000, 100)])
def floats(rng: Rng, n: int, slots: int) -> Launch:
    x = rng.integers(-4, 5, n).astype(F)  # small whole numbers: exact in every type and any order
    zero = np.zeros(slots, F)
    s, m = fold(np.add, zero, x, slots), fold(np.add, zero, np.ones(n, F), slots)
    f16, two, b16 = np.float16, (slots, 2), BF16
    args = [
        x,
        zero,
        np.zeros(slots),
        np.zeros(slots, f16),
        np.zeros(two, f16),
        np.zeros(slots, b16),
        np.zeros(two, b16),
        n,
        slots,
    ]
    want = {1: s, 2: s, 3: s, 4: np.stack([s, -s], 1), 5: s.astype(b16), 6: np.stack([s, m], 1).astype(b16)}
    return Launch(blocks(n, 64), 64, args, {i: np.asarray(v) + 0 for i, v in want.items()}, rtol=1e-30)


@case(BOTH, "swap_loops", (1, 1), (100, 3), deep=[(2000, 30)])
def swap_loops(rng: Rng, n: int, slots: int) -> Launch:
    x = rng.normal(size=n).astype(F)
    top = fold(np.maximum, np.full(slots, -9, F), x, slots)
    product = fold(np.multiply, np.ones(slots), np.where(x > 0, 2.0, 0.5), slots)
    halves = fold(np.add, np.arange(slots, dtype=np.uint16), np.full(n, 3, np.uint16), slots)
    args = [x, np.full(slots, -9, F), np.ones(slots), np.arange(slots, dtype=np.uint16), n, slots]
    return Launch(blocks(n, 64), 64, args, {1: top, 2: product, 3: halves})


@case(BOTH, "shared_atomics", (1,), (300,), deep=[(5000,)])
def shared_atomics(rng: Rng, n: int) -> Launch:
    x = rng.integers(-1000, 1000, n).astype(I)
    start = np.array([0] * 8 + [2**30, -(2**30), 0], I)
    want = np.array([*np.bincount(x & 7, minlength=8), x.min(), x.max(), (x & 0xFF).sum()], I)
    return Launch(blocks(n, 128), 128, [x, start, np.zeros(1, F), n], {1: want, 2: (x & 0xFF).sum()})


@case(BOTH, "lock", (3, 2), deep=[(12, 20)])
def lock(rng: Rng, grid: int, rounds: int) -> Launch:
    total = rounds * grid * (grid + 1) // 2
    return Launch(grid, 32, [np.zeros(1, I), np.zeros(2, I), rounds], {0: [0], 1: [total, 2 * total]})


@case(BOTH, "message", (100,), deep=[(5000,)])
def message(rng: Rng, n: int) -> Launch:
    squares = np.arange(n, dtype=I) ** 2
    return Launch(2, 64, [Out(n, I), np.zeros(1, I), Out(n, I), n], {0: squares, 1: [1], 2: squares[::-1]})


@case("atomics_90", "vectors", (50, 3), deep=[(2000, 20)])
def vectors(rng: Rng, n: int, slots: int) -> Launch:
    x = rng.integers(-9, 9, n).astype(F)
    s, m = fold(np.add, np.zeros(slots, F), x, slots), fold(np.add, np.zeros(slots, F), np.ones(n, F), slots)
    args = [x, np.zeros((slots, 2), F), np.zeros((slots, 4), F), n, slots]
    return Launch(blocks(n, 32), 32, args, {1: np.stack([s, -s], 1), 2: np.stack([s, m, 2 * s, -m], 1)}, rtol=1e-30)
