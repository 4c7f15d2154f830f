"""The matrix instructions of the virtual GPU: each shape and type of `mma`, tiles through `ldmatrix`, `stmatrix` and `movmatrix`,
and `wmma`, against numpy. Elements are placed in the registers by the formulas of the PTX manual, written out here.
Small integers must agree exactly, random numbers to the accumulator's precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.runtime import vgpu
from tests.vgpu_ptx import Array, kernel, kinds, run

# ---- numbers


def bf16(x: Array) -> Array:
    """float32 whose lower half is cut off, as bits."""
    return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float8(code: int, kind: str) -> float:
    """The value of one code of e4m3 or e5m2."""
    e, f, bias = (4, 3, 7) if kind == "e4m3" else (5, 2, 15)
    sign, exponent, fraction = code >> 7, code >> f & (1 << e) - 1, code & (1 << f) - 1
    if kind == "e4m3" and code & 127 == 127 or kind == "e5m2" and exponent == 31 and fraction:
        return float("nan")
    if kind == "e5m2" and exponent == 31:
        value = float("inf")
    elif exponent:
        value = (1 + fraction / (1 << f)) * 2.0 ** (exponent - bias)
    else:
        value = fraction / (1 << f) * 2.0 ** (1 - bias)
    return -value if sign else value


def elements(kind: str, shape: tuple[int, int], rng: np.random.Generator, exact: bool) -> tuple[Array, Array]:
    """(codes, their values in float64)."""
    if kind in ("s8", "u8", "s4", "u4", "b1"):
        low, high = {"s8": (-128, 128), "u8": (0, 256), "s4": (-8, 8), "u4": (0, 16), "b1": (0, 2)}[kind]
        whole = rng.integers(low, high, shape)
        return whole & (1 << BITS[kind]) - 1, whole.astype(np.float64)
    if kind in ("e4m3", "e5m2"):
        codes = rng.integers(0, 256, shape)
        if exact:
            codes = codes & 0x80 | (0x38 if kind == "e4m3" else 0x3C)  # 1 and -1
        codes = np.where(codes & 0x78 == 0x78, 0x11, codes)
        return codes, np.vectorize(lambda c: float8(int(c), kind))(codes)
    x: Array = rng.integers(-8, 9, shape).astype(np.float64) if exact else rng.standard_normal(shape)
    if kind == "f16":
        return x.astype(np.float16).view(np.uint16), x.astype(np.float16).astype(np.float64)
    if kind == "bf16":
        return bf16(x), from_bf16(bf16(x)).astype(np.float64)
    if kind == "tf32":  # bits below the tf32 fraction are set: they must not count
        bits = x.astype(np.float32).view(np.uint32) | 0x1FFF
        return bits, (bits & 0xFFFFE000).view(np.float32).astype(np.float64)
    return x.view(np.uint64), x


BITS = {"f16": 16, "bf16": 16, "tf32": 32, "s8": 8, "u8": 8, "s4": 4, "u4": 4, "b1": 1, "f64": 64, "e4m3": 8, "e5m2": 8}


def packed(codes: Array, bits: int, places: list[list[tuple[int, int]]], registers: int) -> Array:
    """uint32 (or uint64) [registers, 32]: `places[lane]` lists the (row, column) of a lane's elements in order."""
    per = max(1, 32 // bits)
    out = np.zeros((registers, 32), np.uint64)
    for lane, items in enumerate(places):
        for i, (row, column) in enumerate(items):
            out[i // per, lane] |= np.uint64(int(codes[row, column]) << (i % per * bits))
    return out if bits == 64 else out.astype(np.uint32)


def factor(rows: int, depth: int, bits: int) -> list[list[tuple[int, int]]]:
    """Where the elements of A [rows, depth] are (of B with rows and columns exchanged), by the manual's formulas."""
    per = max(1, 32 // bits)
    halves, blocks = rows // 8, depth // (4 * per)
    return [
        [(lane // 4 + 8 * h, b * 4 * per + lane % 4 * per + i) for b in range(blocks) for h in range(halves) for i in range(per)]
        for lane in range(32)
    ]  # fmt: skip


def sums(rows: int) -> list[list[tuple[int, int]]]:
    return [[(lane // 4 + 8 * h, lane % 4 * 2 + i) for h in range(rows // 8) for i in range(2)] for lane in range(32)]


# ---- mma

SHAPES = [
    (16, 8, "f16", "f16", "f32"), (16, 16, "f16", "f16", "f32"), (16, 16, "f16", "f16", "f16"), (16, 8, "f16", "f16", "f16"),
    (16, 8, "bf16", "bf16", "f32"), (16, 16, "bf16", "bf16", "f32"), (16, 4, "tf32", "tf32", "f32"), (16, 8, "tf32", "tf32", "f32"),
    (8, 4, "f64", "f64", "f64"), (16, 4, "f64", "f64", "f64"), (16, 8, "f64", "f64", "f64"), (16, 16, "f64", "f64", "f64"),
    (8, 16, "s8", "s8", "s32"), (16, 16, "s8", "u8", "s32"), (16, 32, "u8", "s8", "s32"), (16, 32, "u8", "u8", "s32"),
    (8, 32, "s4", "u4", "s32"), (16, 32, "u4", "s4", "s32"), (16, 64, "s4", "s4", "s32"),
    (16, 32, "e4m3", "e5m2", "f32"), (16, 16, "e5m2", "e4m3", "f32"), (16, 32, "e4m3", "e4m3", "f16"),
    (8, 128, "b1", "b1", "s32"), (16, 128, "b1", "b1", "s32"), (16, 256, "b1", "b1", "s32"),
]  # fmt: skip

ACCUMULATOR: dict[str, tuple[Any, str, str]] = {  # numpy type, register class, how it moves
    "f32": (np.float32, "%f", "f32"), "s32": (np.int32, "%r", "b32"), "f64": (np.float64, "%d", "f64"), "f16": (np.float16, "%r", "b32")
}  # fmt: skip


def mma_kernel(name: str, na: int, nb: int, nc: int, accumulator: str, wide: bool) -> str:
    """Every warp of the grid multiplies its own fragments: registers lie as [warp, register, lane] in memory."""
    _, letter, move = ACCUMULATOR[accumulator]
    size, factor_move, factor_letter = (8, "f64", "%d") if wide else (4, "b32", "%r")
    out_size = 8 if accumulator == "f64" else 4
    lines = ["    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.u32 %r4, %r2, %r3, %r0; shr.u32 %r4, %r4, 5;"]
    offset = 10

    def fragment(pointer: int, count: int, bytes_: int, kind: str, letter: str, first: int) -> list[str]:
        out = [
            f"mad.lo.u32 %r5, %r4, {32 * count}, %r1; mul.wide.u32 %rd20, %r5, {bytes_}; add.s64 %rd20, %rd{pointer}, %rd20;"
        ]
        return out + [f"ld.global.{kind} {letter}{first + i}, [%rd20 + {32 * bytes_ * i}];" for i in range(count)]

    a, b, c = offset, offset + na, offset + na + nb
    lines += fragment(0, na, size, factor_move, factor_letter, a)
    lines += fragment(1, nb, size, factor_move, factor_letter, b)
    lines += fragment(2, nc, out_size, move, letter, c)

    def group(letter: str, first: int, count: int) -> str:
        return "{" + ", ".join(f"{letter}{first + i}" for i in range(count)) + "}"

    lines.append(
        f"{name} {group(letter, c, nc)}, {group(factor_letter, a, na)}, {group(factor_letter, b, nb)}, {group(letter, c, nc)};"
    )
    lines += [f"st.global.{move} [%rd20 + {32 * out_size * i}], {letter}{c + i};" for i in range(nc)]
    return kernel("\n    ".join(lines), 3)


def multiply(m: int, k: int, left: str, right: str, acc: str, exact: bool, flags: str = "", logic: str = "") -> None:
    rng = np.random.default_rng(m * k + exact)
    warps, wide = 6, left == "f64"
    numpy_type = ACCUMULATOR[acc][0]
    per = max(1, 32 // BITS[left])
    na, nb, nc = m * k // 32 // per, k * 8 // 32 // per, m * 8 // 32 // (2 if acc == "f16" else 1)
    name = f"mma.sync.aligned.m{m}n8k{k}.row.col{flags}.{acc}.{left}.{right}.{acc}{logic}"
    a_registers, b_registers, c_registers, wanted = [], [], [], []
    for _ in range(warps):
        (a, x), (b, y) = elements(left, (m, k), rng, exact), elements(right, (8, k), rng, exact)
        c = (
            rng.integers(-20, 20, (m, 8)).astype(numpy_type)
            if exact or acc == "s32"
            else rng.standard_normal((m, 8)).astype(numpy_type)
        )
        if logic:
            found = np.array(
                [[(int_xor if "xor" in logic else int_and)(x[i], y[j]) for j in range(8)] for i in range(m)]
            )
        else:
            found = x @ y.T
        wanted.append(found + c.astype(np.float64))
        a_registers.append(packed(a, BITS[left], factor(m, k, BITS[left]), na))
        b_registers.append(packed(b, BITS[right], factor(8, k, BITS[right]), nb))
        codes = c.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[c.itemsize])
        c_registers.append(packed(codes, 8 * c.itemsize, sums(m), nc))
    text = mma_kernel(name, na, nb, nc, acc, wide)
    arrays, report = run(text, [np.stack(x) for x in (a_registers, b_registers, c_registers)], grid=2, block=96)
    got = np.zeros((warps, m, 8))
    for w in range(warps):
        registers = arrays[2].reshape(warps, nc, 32)[w]
        for lane, items in enumerate(sums(m)):
            mine = np.ascontiguousarray(registers[:, lane]).view(numpy_type)
            for i, (row, column) in enumerate(items):
                got[w, row, column] = mine[i]
    if exact or acc == "s32":
        np.testing.assert_array_equal(got, np.array(wanted))
    else:
        with np.errstate(over="ignore"):  # a half may overflow
            rounded = np.array(wanted).astype(numpy_type).astype(np.float64)
        tolerance = {"f16": 2e-3, "f32": 2e-6, "f64": 1e-14}[acc] * np.abs(rounded[np.isfinite(rounded)]).max()
        np.testing.assert_allclose(got, rounded, atol=tolerance)
    assert report.counters.tensor_flops == warps * 2 * m * 8 * k
    assert sum(n for name, n in report.counters.by_class.items() if name.startswith("tensor.")) == warps


def int_xor(x: Array, y: Array) -> int:
    return int(np.count_nonzero(x != y))


def int_and(x: Array, y: Array) -> int:
    return int(np.count_nonzero((x != 0) & (y != 0)))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"m{s[0]}k{s[1]}-{'-'.join(s[2:])}")
def test_mma(shape: tuple[int, int, str, str, str]) -> None:
    m, k, left, right, acc = shape
    if left == "b1":
        multiply(m, k, left, right, acc, True, logic=".xor.popc")
        multiply(m, k, left, right, acc, True, logic=".and.popc")
        return
    multiply(m, k, left, right, acc, True)
    multiply(m, k, left, right, acc, False)


def one_product(name: str, a: int, b: int, c: int, registers: tuple[int, int, int]) -> Array:
    """One warp's product where all registers of a factor hold the same bits."""
    first = [
        f"mov.b32 %r{10 + i}, {v};" for i, v in enumerate([a] * registers[0] + [b] * registers[1] + [c] * registers[2])
    ]
    names = [f"%r{10 + i}" for i in range(sum(registers))]
    x, y, z = names[: registers[0]], names[registers[0] : sum(registers[:2])], names[sum(registers[:2]) :]
    body = " ".join(first) + f"\n{name} {{{', '.join(z)}}}, {{{', '.join(x)}}}, {{{', '.join(y)}}}, {{{', '.join(z)}}};"
    body += f"\nmul.wide.u32 %rd9, %r0, 4; add.s64 %rd9, %rd0, %rd9; st.global.b32 [%rd9], {z[0]};"
    return run(kernel(body, 1), [np.zeros(32, np.int32)])[0][0]


def test_integer_sums_wrap_around_or_saturate() -> None:
    name = "mma.sync.aligned.m16n8k32.row.col{}.s32.s8.s8.s32"
    top = 2**31 - 1
    assert (one_product(name.format(""), 0x7F7F7F7F, 0x7F7F7F7F, top, (4, 2, 4)) == top + 32 * 127**2 - 2**32).all()
    assert (one_product(name.format(".satfinite"), 0x7F7F7F7F, 0x7F7F7F7F, top, (4, 2, 4)) == top).all()
    assert (one_product(name.format(".satfinite"), 0x7F7F7F7F, 0x80808080 - 2**32, -top, (4, 2, 4)) == -(2**31)).all()


def test_products_of_subnormal_halves_count() -> None:
    found = one_product("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 0x00010001, 0x3C003C00, 0, (4, 2, 4))
    assert (found.view(np.float32) == 16 * 2.0**-24).all()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("mma.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3}, {%r2,%r3,%r4,%r5}, {%r6,%r7}, {%f0,%f1,%f2,%f3};", "shape"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3}, {%r2,%r3}, {%r6,%r7}, {%f0,%f1,%f2,%f3};", "registers"),
        ("mma.sync.aligned.m16n8k16.col.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3}, {%r2,%r3,%r4,%r5}, {%r6,%r7}, {%f0,%f1,%f2,%f3};", "layouts"),
        ("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r2}, [%r3];", "2 registers"),
    ],
)  # fmt: skip
def test_what_is_no_such_instruction_is_refused(text: str, what: str) -> None:
    with pytest.raises(Exception, match=what) as found:
        run(kernel(text, 1), [np.zeros(1, np.int32)])
    assert getattr(found.value, "code", "")[:4] == "FX07"


def test_lanes_that_stay_away_from_a_product_are_found() -> None:
    body = """
    setp.lt.u32 %p1, %r1, 16;
    @%p1 mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3}, {%r2,%r3,%r4,%r5}, {%r6,%r7}, {%f0,%f1,%f2,%f3};
    """
    _, report = run(kernel(body, 1), [np.zeros(1, np.int32)], check="collect")
    (found,) = report.findings
    assert found.kind == "absent-lanes" and "16, 17" in found.message and found.count == 16
    _, report = run(kernel(body.replace("@%p1 ", ""), 1), [np.zeros(1, np.int32)], check="collect", block=48)
    assert kinds(report) == {"absent-lanes"}  # half a warp is none


# ---- tiles

TILE = ".shared .align 16 .b8 tile[1024];"
FILL = """
    mul.wide.u32 %rd9, %r0, 16; add.s64 %rd9, %rd0, %rd9; shl.b32 %r2, %r0, 4; mov.u32 %r3, tile; add.u32 %r2, %r2, %r3;
    ld.global.v4.u32 {%r10,%r11,%r12,%r13}, [%rd9]; st.shared.v4.u32 [%r2], {%r10,%r11,%r12,%r13};
    bar.sync 0;
"""


def tile_elements(halves: Array, transposed: bool) -> Array:
    """[tiles, 32, 2]: what the lanes hold of tiles [tiles, 8, 8]."""
    t = halves.transpose(0, 2, 1) if transposed else halves
    return np.stack([t[:, [lane // 4], [lane % 4 * 2, lane % 4 * 2 + 1]] for lane in range(32)], axis=1)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("space", [".shared", ""])
def test_ldmatrix_and_stmatrix(count: int, trans: str, space: str) -> None:
    rng = np.random.default_rng(count)
    rows = rng.integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    names = ", ".join(f"%r{20 + i}" for i in range(count))
    # row r of the tiles is taken from row 31 - r of the memory: addresses, not order, say where rows are
    base = "cvta.shared.u64 %rd10, %rd10;" if not space else ""
    body = (
        FILL
        + f"""
    sub.u32 %r4, 31, %r0; shl.b32 %r4, %r4, 4; add.u32 %r4, %r4, %r3; cvt.u64.u32 %rd10, %r4; {base}
    ldmatrix.sync.aligned.m8n8.x{count}{trans}{space}.b16 {{{names}}}, [%rd10];
    bar.sync 0;
    """
    )
    body += "mul.wide.u32 %rd11, %r0, 4; add.s64 %rd11, %rd1, %rd11;\n"
    body += "\n".join(f"st.global.b32 [%rd11 + {128 * i}], %r{20 + i};" for i in range(count))
    body += f"""
    stmatrix.sync.aligned.m8n8.x{count}{trans}{space}.b16 [%rd10], {{{names}}};
    bar.sync 0;
    ld.shared.v4.u32 {{%r10,%r11,%r12,%r13}}, [%r2]; st.global.v4.u32 [%rd9], {{%r10,%r11,%r12,%r13}};
    """
    (after, out), report = run(kernel(body, 2, shared=TILE), [rows, np.zeros((count, 32), np.uint32)])
    tiles = rows[::-1][: 8 * count].reshape(count, 8, 8)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(count, 32, 2), tile_elements(tiles, bool(trans)))
    np.testing.assert_array_equal(after, rows)  # what was loaded is stored where it was
    loads = 4 + count  # one phase of 8 rows each
    assert report.counters.wavefronts["shared load"] == report.counters.ideal_wavefronts["shared load"] == loads


def test_ldmatrix_counts_bank_conflicts_of_each_phase() -> None:
    body = (
        FILL
        + """
    and.b32 %r4, %r0, 7; shl.b32 %r4, %r4, 7; add.u32 %r4, %r4, %r3;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20,%r21,%r22,%r23}, [%r4];
    """
    )
    _, report = run(kernel(body, 1, shared=TILE), [np.zeros(256, np.uint32)], block=64)
    assert report.counters.bank_conflicts == 2 * 4 * 7  # rows 128 bytes apart share their banks


def test_movmatrix_transposes() -> None:
    x = np.arange(64, dtype=np.uint16).reshape(8, 8)
    body = """
    mul.wide.u32 %rd9, %r0, 4; add.s64 %rd9, %rd0, %rd9; ld.global.b32 %r2, [%rd9];
    movmatrix.sync.aligned.m8n8.trans.b16 %r3, %r2; st.global.b32 [%rd9], %r3;
    """
    (out,), _ = run(kernel(body, 1), [x])
    np.testing.assert_array_equal(out, x.T)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (("shl.b32 %r4, %r4, 4;", "shl.b32 %r4, %r4, 3;"), "misaligned"),
        (("shl.b32 %r4, %r4, 4;", "shl.b32 %r4, %r4, 6;"), "out-of-bounds"),
        (("bar.sync 0;", "@%p2 bar.sync 1;"), "shared-race"),
        (("st.shared.v4.u32 [%r2], {%r10,%r11,%r12,%r13};", ""), "uninitialised"),
        (("    ldmatrix", "    @%p1 ldmatrix"), "absent-lanes"),
    ],
)
def test_misuse_of_ldmatrix_is_found(change: tuple[str, str], kind: str) -> None:
    body = (
        "setp.ne.u32 %p1, %r1, 3; setp.gt.u32 %p2, %r1, 99;"
        + FILL
        + """
    sub.u32 %r4, 31, %r1; shl.b32 %r4, %r4, 4; add.u32 %r4, %r4, %r3;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20,%r21,%r22,%r23}, [%r4];
    """
    )
    clean = kernel(body, 1, shared=TILE)
    arrays = [np.zeros(256, np.uint32)]
    _, report = run(clean, arrays, block=64, check="collect")
    assert not report.findings
    assert change[0] in clean
    _, report = run(clean.replace(*change), arrays, block=64, check="collect")
    assert kinds(report) == {kind}
    with pytest.raises(vgpu.SanitizerError):
        run(clean.replace(*change), arrays, block=64)


# ---- wmma

WMMA = [  # m, n, k, A and B, accumulator, registers of A, B and C
    (16, 16, 16, "f16", "f32", 8, 8, 8), (16, 16, 16, "f16", "f16", 8, 8, 4), (32, 8, 16, "f16", "f32", 8, 8, 8),
    (8, 32, 16, "f16", "f16", 8, 8, 4), (16, 16, 16, "bf16", "f32", 4, 4, 8), (32, 8, 16, "bf16", "f32", 8, 2, 8),
    (8, 32, 16, "bf16", "f32", 2, 8, 8), (16, 16, 8, "tf32", "f32", 4, 4, 8), (16, 16, 16, "s8", "s32", 2, 2, 8),
    (32, 8, 16, "u8", "s32", 4, 1, 8), (8, 32, 16, "s8", "s32", 1, 4, 8), (8, 8, 4, "f64", "f64", 1, 1, 2),
    (8, 8, 32, "s4", "s32", 1, 1, 2), (8, 8, 32, "u4", "s32", 1, 1, 2), (8, 8, 128, "b1", "s32", 1, 1, 2),
]  # fmt: skip


def in_memory(codes: Array, bits: int, layout: str, padding: int) -> tuple[Array, int]:
    """(bytes of a matrix in a layout, with unused elements after each line; the stride in elements)."""
    lines = codes if layout == "row" else codes.T
    wide = np.concatenate([lines, np.zeros((lines.shape[0], padding), lines.dtype)], axis=1).astype(np.uint64)
    if bits >= 8:
        return wide.astype(f"u{bits // 8}").reshape(-1).view(np.uint8), wide.shape[1]
    each = 8 // bits
    grouped = wide.reshape(-1, each) << (np.arange(each, dtype=np.uint64) * np.uint64(bits))
    return grouped.sum(axis=1).astype(np.uint8), wide.shape[1]


@pytest.mark.parametrize("shape", WMMA, ids=lambda s: "m{}n{}k{}-{}-{}".format(*s))
@pytest.mark.parametrize("layouts", ["row.col", "col.row", "row.row"])
def test_wmma(shape: tuple[int, int, int, str, str, int, int, int], layouts: str) -> None:
    m, n, k, kind, acc, na, nb, nc = shape
    bits = BITS[kind]
    if bits < 8:
        layouts = "row.col"  # the only ones there are
    of_a, of_b = layouts.split(".")
    of_c = of_a
    rng = np.random.default_rng(m + n)
    (a, x), (b, y) = elements(kind, (m, k), rng, True), elements(kind, (k, n), rng, True)
    numpy_type, letter, _ = ACCUMULATOR[acc]
    c = rng.integers(-9, 9, (m, n)).astype(numpy_type)
    codes = c.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[c.itemsize])
    padding = 32 if bits < 8 else 16
    if bits == 1:
        padding = 128
    (a_bytes, a_stride), (b_bytes, b_stride) = in_memory(a, bits, of_a, padding), in_memory(b, bits, of_b, padding)
    c_bytes, c_stride = in_memory(codes, 8 * c.itemsize, of_c, 8)
    wide = "%d" if kind == "f64" else "%r"

    def group(letter: str, first: int, count: int) -> str:
        return "{" + ", ".join(f"{letter}{first + i}" for i in range(count)) + "}"

    ra, rb, rc = group(wide, 20, na), group(wide, 30, nb), group(letter, 40, nc)
    s = f"m{m}n{n}k{k}"
    logic = ".xor.popc" if kind == "b1" else ""
    types = f"{acc}.{acc}" if kind == "f16" else f"{acc}.{kind}.{kind}.{acc}"
    rounding = ".rn" if kind == "f64" else ""
    body = f"""
    wmma.load.a.sync.aligned.{of_a}.{s}.global.{kind} {ra}, [%rd0], {a_stride};
    mov.u32 %r2, {b_stride}; wmma.load.b.sync.aligned.{of_b}.{s}.{kind} {rb}, [%rd1], %r2;
    wmma.load.c.sync.aligned.{of_c}.{s}.global.{acc} {rc}, [%rd2], {c_stride};
    wmma.mma{logic}.sync.aligned.{layouts}.{s}{rounding}.{types} {rc}, {ra}, {rb}, {rc};
    wmma.store.d.sync.aligned.{of_c}.{s}.global.{acc} [%rd2], {rc}, {c_stride};
    """
    arrays, report = run(kernel(body, 3), [a_bytes, b_bytes, c_bytes])
    found = arrays[2].view(numpy_type).reshape(-1, c_stride)[:, : n if of_c == "row" else m]
    found = found if of_c == "row" else found.T
    product = np.array([[int_xor(p, q) for q in y.T] for p in x]) if logic else x @ y
    np.testing.assert_array_equal(found.astype(np.float64), product + c)
    assert report.counters.tensor_flops == 2 * m * n * k


def test_wmma_through_shared_memory_with_the_default_stride() -> None:
    rng = np.random.default_rng(3)
    (a, x), (b, y) = elements("f16", (16, 16), rng, True), elements("f16", (16, 16), rng, True)
    body = (
        FILL
        + """
    wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%r20,%r21,%r22,%r23,%r24,%r25,%r26,%r27}, [%r3];
    wmma.load.b.sync.aligned.row.m16n16k16.shared::cta.f16 {%r30,%r31,%r32,%r33,%r34,%r35,%r36,%r37}, [%r3+512];
    mov.f32 %f0, 0f00000000;
    wmma.mma.sync.aligned.row.row.m16n16k16.f32.f32 {%f10,%f11,%f12,%f13,%f14,%f15,%f16,%f17},
        {%r20,%r21,%r22,%r23,%r24,%r25,%r26,%r27}, {%r30,%r31,%r32,%r33,%r34,%r35,%r36,%r37}, {%f0,%f0,%f0,%f0,%f0,%f0,%f0,%f0};
    wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%rd1], {%f10,%f11,%f12,%f13,%f14,%f15,%f16,%f17};
    """
    )
    (_, out), report = run(
        kernel(body, 2, shared=TILE.replace("1024", "2048")),
        [np.stack([a, b]), np.zeros((16, 16), np.float32)],
        block=64,
    )
    np.testing.assert_array_equal(out, x @ y)
    assert report.counters.by_class["memory.shared"] == 2 * 3  # one store and two loads of two warps


def test_wmma_outside_of_an_allocation_is_found() -> None:
    body = "wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {%r20,%r21,%r22,%r23,%r24,%r25,%r26,%r27}, [%rd0], 24;"
    _, report = run(kernel(body, 1), [np.zeros((16, 16), np.float16)], check="collect")
    assert kinds(report) == {"out-of-bounds"}
    body = body.replace("[%rd0], 24", "[%rd0+2], 16")
    _, report = run(kernel(body, 1), [np.zeros((17, 16), np.float16)], check="collect")
    assert kinds(report) == {"misaligned"}


def test_halves_of_one_word_that_lanes_store_are_no_race() -> None:
    body = """
    mov.u32 %r3, tile; mov.u32 %r20, 0x3c003c00;
    wmma.store.d.sync.aligned.col.m16n16k16.shared.f16 [%r3], {%r20,%r20,%r20,%r20};
    bar.sync 0;
    mul.wide.u32 %rd9, %r0, 4; add.s64 %rd9, %rd0, %rd9; shl.b32 %r4, %r0, 2; add.u32 %r4, %r4, %r3;
    ld.shared.b32 %r5, [%r4]; st.global.b32 [%rd9], %r5;
    """
    (out,), _ = run(kernel(body, 1, shared=TILE), [np.zeros(64, np.uint32)], block=32)
    assert (out[:32] == 0x3C003C00).all()
