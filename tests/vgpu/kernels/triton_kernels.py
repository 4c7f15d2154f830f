"""Kernels of our own in Triton. `VARIANTS` says how each is compiled: names of fixtures, types of the arguments, constants, warps
and stages. Read by `tests/vgpu/make.py` alone, with Triton installed; the tests need only what it wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    tl.store(out + i, tl.load(x + i, mask=inside) + tl.load(y + i, mask=inside), mask=inside)


@triton.jit
def row_sums(x, total, top, where, columns, BLOCK: tl.constexpr):
    """Sum, maximum and place of the maximum of a row."""
    row = tl.program_id(0)
    total_here = tl.zeros((BLOCK,), tl.float32)
    i = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = tl.zeros((BLOCK,), tl.int32)
    for base in range(0, columns, BLOCK):
        v = tl.load(x + row * columns + base + i, mask=base + i < columns, other=float("-inf"))
        total_here += tl.where(base + i < columns, v, 0.0)
        place = tl.where(v > best, base + i, place)
        best = tl.maximum(v, best)
    tl.store(total + row, tl.sum(total_here, 0))
    tl.store(top + row, tl.max(best, 0))
    least = tl.where(best == tl.max(best, 0), place, columns)
    tl.store(where + row, tl.min(least, 0))


@triton.jit
def argmax(x, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * columns + i, mask=i < columns, other=float("-inf"))
    tl.store(out + row, tl.argmax(v, 0))


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * columns + i, mask=i < columns, other=float("-inf"))
    e = tl.exp(v - tl.max(v, 0))
    tl.store(out + row * columns + i, e / tl.sum(e, 0), mask=i < columns)


@triton.jit
def layernorm(x, gain, bias, out, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < columns
    v = tl.load(x + row * columns + i, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(v, 0) / columns
    d = tl.where(inside, v - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(d * d, 0) / columns + eps)
    y = d * scale * tl.load(gain + i, mask=inside) + tl.load(bias + i, mask=inside)
    tl.store(out + row * columns + i, y, mask=inside)


@triton.jit
def matmul(a, b, c, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr):
    """c[m,n] = a[m,k] b[k,n]; the loop over k is a pipeline of asynchronous copies."""
    i = tl.program_id(0) * M + tl.arange(0, M)
    j = tl.program_id(1) * N + tl.arange(0, N)
    p = tl.arange(0, K)
    left = a + i[:, None] * k + p[None, :]
    right = b + p[:, None] * n + j[None, :]
    sums = tl.zeros((M, N), ACC)
    for base in range(0, k, K):
        x = tl.load(left, mask=(i[:, None] < m) & (base + p[None, :] < k), other=0)
        y = tl.load(right, mask=(base + p[:, None] < k) & (j[None, :] < n), other=0)
        sums = tl.dot(x, y, sums, out_dtype=ACC)
        left += K
        right += K * n
    place = c + i[:, None] * n + j[None, :]
    tl.store(place, sums, mask=(i[:, None] < m) & (j[None, :] < n))


@triton.jit
def attention(q, k, v, out, length, scale, CAUSAL: tl.constexpr, Q: tl.constexpr, KV: tl.constexpr, D: tl.constexpr):
    """Flash attention, one block of queries of one head; softmax to base 2."""
    head = tl.program_id(1) * length * D
    i = tl.program_id(0) * Q + tl.arange(0, Q)
    d = tl.arange(0, D)
    queries = tl.load(q + head + i[:, None] * D + d[None, :], mask=i[:, None] < length, other=0.0)
    top = tl.full((Q,), float("-inf"), tl.float32)
    total = tl.zeros((Q,), tl.float32)
    sums = tl.zeros((Q, D), tl.float32)
    end = length
    if CAUSAL:
        end = tl.minimum(length, (tl.program_id(0) + 1) * Q)
    for base in range(0, end, KV):
        j = base + tl.arange(0, KV)
        keys = tl.load(k + head + j[None, :] * D + d[:, None], mask=j[None, :] < length, other=0.0)
        s = tl.dot(queries, keys) * scale
        keep = j[None, :] < length
        if CAUSAL:
            keep = keep & (j[None, :] <= i[:, None])
        s = tl.where(keep, s, float("-inf"))
        most = tl.maximum(top, tl.max(s, 1))
        w = tl.exp2(s - most[:, None])
        fade = tl.exp2(top - most)
        total = total * fade + tl.sum(w, 1)
        values = tl.load(v + head + j[:, None] * D + d[None, :], mask=j[:, None] < length, other=0.0)
        sums = tl.dot(w.to(values.dtype), values, sums * fade[:, None])
        top = most
    sums = sums / total[:, None]
    tl.store(out + head + i[:, None] * D + d[None, :], sums.to(out.dtype.element_ty), mask=i[:, None] < length)


@triton.jit
def stencil(x, out, height, width, H: tl.constexpr, W: tl.constexpr):
    """Mean of the four neighbours, zero outside."""
    i = tl.program_id(0) * H + tl.arange(0, H)[:, None]
    j = tl.program_id(1) * W + tl.arange(0, W)[None, :]
    inside = (i < height) & (j < width)
    at = x + i * width + j
    up = tl.load(at - width, mask=inside & (i > 0), other=0.0)
    down = tl.load(at + width, mask=inside & (i < height - 1), other=0.0)
    left = tl.load(at - 1, mask=inside & (j > 0), other=0.0)
    right = tl.load(at + 1, mask=inside & (j < width - 1), other=0.0)
    tl.store(out + i * width + j, (up + down + left + right) * 0.25, mask=inside)


@triton.jit
def histogram(x, bins, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """One by one with atomics in global memory, and, after it, through shared memory by `tl.histogram`."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0)
    tl.atomic_add(bins + v, 1, mask=i < n)
    counts = tl.histogram(v, BINS, mask=i < n)
    tl.atomic_add(bins + BINS + tl.arange(0, BINS), counts, sem="relaxed")


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def scans(x, sums, tops, back, columns, BLOCK: tl.constexpr):
    """Along a row: cumulative sum, running maximum, and the sum from the end."""
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < columns
    v = tl.load(x + row * columns + i, mask=inside, other=0)
    tl.store(sums + row * columns + i, tl.cumsum(v, 0), mask=inside)
    tl.store(tops + row * columns + i, tl.associative_scan(v, 0, larger), mask=inside)
    tl.store(back + row * columns + i, tl.cumsum(v, 0, reverse=True), mask=inside)


@triton.jit
def dropout(x, out, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n)
    keep = tl.rand(seed, i) > p
    tl.store(out + i, tl.where(keep, v / (1 - p), 0.0), mask=i < n)


@triton.jit
def gather_scatter(x, index, out, n, columns, BLOCK: tl.constexpr, C: tl.constexpr):
    """out[index[i], :] += x[i, :], and the same rows of x in another order: out[n + i] = x[index[i]]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, C)
    inside = (i[:, None] < n) & (j[None, :] < columns)
    to = tl.load(index + i, mask=i < n, other=0)
    v = tl.load(x + i[:, None] * columns + j[None, :], mask=inside, other=0.0)
    tl.atomic_add(out + to[:, None] * columns + j[None, :], v, mask=inside)
    w = tl.load(x + to[:, None] * columns + j[None, :], mask=inside, other=0.0)
    tl.store(out + (n + i[:, None]) * columns + j[None, :], w, mask=inside)


@triton.jit
def sort_rows(x, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * columns + i, mask=i < columns, other=2147483647)
    tl.store(out + row * columns + i, tl.sort(v), mask=i < columns)


@triton.jit
def unary(x, out, n, BLOCK: tl.constexpr):
    """The functions of tl.math, one row of the result each."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    v = tl.load(x + i, mask=inside, other=1.0)
    a = tl.abs(v)
    tl.store(out + 0 * n + i, tl.exp(v), mask=inside)
    tl.store(out + 1 * n + i, tl.log(a), mask=inside)
    tl.store(out + 2 * n + i, tl.sin(v), mask=inside)
    tl.store(out + 3 * n + i, tl.cos(v), mask=inside)
    tl.store(out + 4 * n + i, tl.sqrt(a), mask=inside)
    tl.store(out + 5 * n + i, tl.rsqrt(a), mask=inside)
    tl.store(out + 6 * n + i, tl.erf(v), mask=inside)
    tl.store(out + 7 * n + i, tl.floor(v), mask=inside)
    tl.store(out + 8 * n + i, tl.sigmoid(v), mask=inside)
    tl.store(out + 9 * n + i, v / 3.7, mask=inside)
    tl.store(out + 10 * n + i, tl.div_rn(v, 3.7), mask=inside)
    tl.store(out + 11 * n + i, tl.sqrt_rn(a), mask=inside)
    tl.store(out + 12 * n + i, v.to(tl.float16).to(tl.float32), mask=inside)
    tl.store(out + 13 * n + i, v.to(tl.bfloat16).to(tl.float32), mask=inside)
    tl.store(out + 14 * n + i, tl.fma(v, v, a), mask=inside)


@dataclass(frozen=True)
class Variant:
    """One fixture: `name` of `kernel`, compiled for each of `targets`."""

    name: str
    kernel: object
    signature: str  # types of the arguments that are not constants
    constants: dict[str, object]
    warps: int = 4
    stages: int = 3
    targets: tuple[int, ...] = (80,)
    divisible: tuple[int, ...] = field(default=())  # arguments that are multiples of 16


BOTH = (80, 90)
VARIANTS = [
    Variant("add", add, "*fp32 *fp32 *fp32 i32", {"BLOCK": 512}, divisible=(0, 1, 2)),
    Variant("add_unaligned", add, "*bf16 *bf16 *bf16 i32", {"BLOCK": 256}, warps=2),
    Variant("row_sums", row_sums, "*fp32 *fp32 *fp32 *i32 i32", {"BLOCK": 256}, divisible=(0, 1, 2, 3)),
    Variant("argmax", argmax, "*fp32 *i32 i32", {"BLOCK": 512}, divisible=(0, 1)),
    Variant("softmax", softmax, "*fp32 *fp32 i32", {"BLOCK": 1024}, targets=BOTH, divisible=(0, 1)),
    Variant("layernorm", layernorm, "*fp32 *fp32 *fp32 *fp32 i32 fp32", {"BLOCK": 512}, divisible=(0, 1, 2, 3, 4)),
    Variant("matmul_f16", matmul, "*fp16 *fp16 *fp32 i32 i32 i32", {"M": 64, "N": 64, "K": 32, "ACC": tl.float32},
            targets=BOTH, divisible=(0, 1, 2, 4, 5)),
    Variant("matmul_tf32", matmul, "*fp32 *fp32 *fp32 i32 i32 i32", {"M": 64, "N": 32, "K": 32, "ACC": tl.float32},
            stages=2, targets=BOTH, divisible=(0, 1, 2, 4, 5)),
    Variant("matmul_s8", matmul, "*i8 *i8 *i32 i32 i32 i32", {"M": 32, "N": 32, "K": 64, "ACC": tl.int32},
            divisible=(0, 1, 2, 4, 5)),
    Variant("matmul_odd", matmul, "*bf16 *bf16 *fp32 i32 i32 i32", {"M": 32, "N": 32, "K": 32, "ACC": tl.float32}, warps=2),
    Variant("attention", attention, "*fp16 *fp16 *fp16 *fp16 i32 fp32", {"CAUSAL": False, "Q": 64, "KV": 32, "D": 64},
            stages=2, targets=BOTH, divisible=(0, 1, 2, 3)),
    Variant("attention_causal", attention, "*bf16 *bf16 *bf16 *bf16 i32 fp32", {"CAUSAL": True, "Q": 32, "KV": 32, "D": 32},
            stages=3, divisible=(0, 1, 2, 3)),
    Variant("stencil", stencil, "*fp32 *fp32 i32 i32", {"H": 16, "W": 32}, divisible=(0, 1)),
    Variant("histogram", histogram, "*i32 *i32 i32", {"BLOCK": 256, "BINS": 64}, divisible=(0, 1)),
    Variant("scans", scans, "*i32 *i32 *i32 *i32 i32", {"BLOCK": 512}, divisible=(0, 1, 2, 3)),
    Variant("dropout", dropout, "*fp32 *fp32 i32 fp32 i32", {"BLOCK": 256}, divisible=(0, 1)),
    Variant("gather_scatter", gather_scatter, "*fp32 *i32 *fp32 i32 i32", {"BLOCK": 16, "C": 32}, targets=BOTH, divisible=(0, 1, 2)),
    Variant("sort_rows", sort_rows, "*i32 *i32 i32", {"BLOCK": 64}, warps=1, divisible=(0, 1)),
    Variant("unary", unary, "*fp32 *fp32 i32", {"BLOCK": 256}, divisible=(0, 1)),
]  # fmt: skip
