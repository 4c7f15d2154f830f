"""Warpgroup products of the virtual GPU against numpy: every type, layouts of shared memory written out by hand, and what must be
waited for. Small integers agree exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.runtime import vgpu
from tests.test_vgpu_tensor import ACCUMULATOR, BITS, elements
from tests.vgpu_ptx import Array, kernel, kinds, run

SHARED = ".shared .align 1024 .b8 left[16384]; .shared .align 1024 .b8 right[16384];"
FILL = """
    mov.u32 %r2, left; mov.u32 %r3, right; mov.u32 %r4, %r0;
fill:
    mul.wide.u32 %rd9, %r4, 16; add.s64 %rd10, %rd0, %rd9; add.s64 %rd11, %rd1, %rd9; shl.b32 %r5, %r4, 4;
    ld.global.v4.u32 {%r10,%r11,%r12,%r13}, [%rd10]; add.u32 %r6, %r2, %r5; st.shared.v4.u32 [%r6], {%r10,%r11,%r12,%r13};
    ld.global.v4.u32 {%r10,%r11,%r12,%r13}, [%rd11]; add.u32 %r6, %r3, %r5; st.shared.v4.u32 [%r6], {%r10,%r11,%r12,%r13};
    add.u32 %r4, %r4, %ntid; setp.lt.u32 %p1, %r4, 1024;
    @%p1 bra fill;
    fence.proxy.async.shared::cta;
    bar.sync 0;
""".replace("%ntid", "128")


class Layout:
    """A matrix of [lines, bytes] in shared memory: lines go along K ("k") or across it ("mn"); `span` bytes are swizzled. Core
    matrices (8 lines of 16 bytes) follow each other along the line first."""

    def __init__(self, major: str, span: int, lines: int, nbytes: int) -> None:
        self.major, self.span, self.lines, self.nbytes = major, span, lines, nbytes
        across = nbytes // 16  # chunks of a line
        if not span:
            near, far = 128, 128 * across  # from chunk to chunk of a line, from 8 lines to the next 8
            self.leading, self.stride = (near, far) if major == "k" else (far, near)
        else:  # a line is `span` bytes wide; longer ones (mn only) go on in another stretch
            self.stride, self.leading = 8 * span, (lines // 8) * 8 * span
            assert major == "mn" or nbytes <= span

    def place(self, line: int, byte: int) -> int:
        chunk, rest = byte // 16, byte % 16
        if not self.span:
            near, far = (self.leading, self.stride) if self.major == "k" else (self.stride, self.leading)
            return line // 8 * far + chunk * near + line % 8 * 16 + rest
        wide = self.span // 16
        linear = (
            chunk // wide * self.leading + line // 8 * self.stride + line % 8 * self.span + chunk % wide * 16 + rest
        )
        return linear ^ (linear >> 7 & wide - 1) << 4

    def memory(self, matrix: Array) -> Array:
        """uint8[16384] that holds uint8[lines, bytes]."""
        out = np.zeros(16384, np.uint8)
        for line in range(self.lines):
            for byte in range(self.nbytes):
                out[self.place(line, byte)] = matrix[line, byte]
        return out

    @property
    def descriptor(self) -> int:
        """Without the address."""
        mode = {0: 0, 128: 1, 64: 2, 32: 3}[self.span]
        return (self.leading >> 4 & 0x3FFF) << 16 | (self.stride >> 4 & 0x3FFF) << 32 | mode << 62


def laid_out(codes: Array, bits: int, major: str, span: int) -> tuple[Layout, Array]:
    """A factor [rows, k] in shared memory."""
    lines = np.ascontiguousarray(codes if major == "k" else codes.T)
    raw = np.packbits(lines, axis=1, bitorder="little") if bits == 1 else lines.astype(f"u{bits // 8}").view(np.uint8)
    layout = Layout(major, span, *raw.shape)
    return layout, layout.memory(raw)


def product(name: str, n: int, accumulator: str, rest: str, a: str = "%rd12", before: str = "", keep: int = 0) -> str:
    """Fill the shared memory, multiply once into registers that start as 3, and store them as [128, registers]."""
    numpy_type, letter, move = ACCUMULATOR[accumulator]
    count = n // 2 * np.dtype(numpy_type).itemsize // 4
    registers = [f"{letter}{100 + i}" for i in range(count)]
    three = {"f32": "0f40400000", "s32": "3", "f16": "0x42004200"}[accumulator]
    return (
        FILL + before + "\n".join(f"    mov.{move} {r}, {three};" for r in registers) + f"""
    cvt.u64.u32 %rd12, %r2; shr.u64 %rd12, %rd12, 4; or.b64 %rd12, %rd12, %rd30;
    cvt.u64.u32 %rd13, %r3; shr.u64 %rd13, %rd13, 4; or.b64 %rd13, %rd13, %rd31;
    setp.ne.u32 %p2, {keep}, 0;
    wgmma.fence.sync.aligned;
    {name} {{{", ".join(registers)}}}, {a}, %rd13, %p2{rest};
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mul.wide.u32 %rd14, %r0, {4 * count}; add.s64 %rd14, %rd2, %rd14;
    """ + "\n".join(f"    st.global.{move} [%rd14+{4 * i}], {r};" for i, r in enumerate(registers))
    )  # fmt: skip


def unpacked(out: Array, n: int, numpy_type: Any) -> Array:
    """[64, n] from the registers of 128 threads."""
    values = out.reshape(128, -1).view(numpy_type)
    d = np.zeros((64, n), np.float64)
    for thread in range(128):
        for i, v in enumerate(values[thread]):
            d[thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8, i // 4 * 8 + thread % 4 * 2 + i % 2] = v
    return d


DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32, "b1": 256}
CASES: list[tuple[str, str, str, int, str, str, int]] = [  # A, B, accumulator, n, majors of A and B, swizzle
    *(("f16", "f16", "f32", 32, a, b, span) for a in ("k", "mn") for b in ("k", "mn") for span in (0, 32, 64, 128)),
    ("f16", "f16", "f16", 64, "k", "k", 128), ("bf16", "bf16", "f32", 8, "k", "mn", 0), ("bf16", "bf16", "f32", 128, "mn", "k", 64),
    ("tf32", "tf32", "f32", 40, "k", "k", 32), ("e4m3", "e5m2", "f32", 16, "k", "k", 0), ("e5m2", "e4m3", "f16", 24, "k", "k", 128),
    ("s8", "u8", "s32", 32, "k", "k", 64), ("u8", "s8", "s32", 96, "k", "k", 0), ("b1", "b1", "s32", 16, "k", "k", 0),
    ("f16", "f16", "f32", 256, "k", "k", 64),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_products_from_shared_memory(case: tuple[str, str, str, int, str, str, int]) -> None:
    left, right, acc, n, major_a, major_b, span = case
    k = DEPTH[left]
    rng = np.random.default_rng(n)
    (a, x), (b, y) = elements(left, (64, k), rng, True), elements(right, (n, k), rng, True)
    layout_a, memory_a = laid_out(a, BITS[left], major_a, span)
    layout_b, memory_b = laid_out(b, BITS[right], major_b, min(span, 64 if major_b == "mn" else span))
    logic = ".and.popc" if left == "b1" else ""
    name = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{acc}.{left}.{right}{logic}"
    rest = "" if acc == "s32" else ", 1, 1"
    if BITS[left] == 16:
        rest += f", {int(major_a == 'mn')}, {int(major_b == 'mn')}"
    start = f"mov.b64 %rd30, {layout_a.descriptor}; mov.b64 %rd31, {layout_b.descriptor};\n"
    numpy_type = ACCUMULATOR[acc][0]
    out = np.zeros(64 * n, numpy_type)
    text = kernel(start + product(name, n, acc, rest), 3, shared=SHARED)
    arrays, report = run(text, [memory_a, memory_b, out], block=128)
    with np.errstate(over="ignore"):
        wanted = (x @ y.T).astype(numpy_type)
    np.testing.assert_array_equal(unpacked(arrays[2], n, numpy_type), wanted)
    assert report.counters.tensor_flops == 2 * 64 * n * k
    assert report.counters.bytes["shared load"] == (64 + n) * k * BITS[left] // 8


@pytest.mark.parametrize(("signs", "keep"), [("1, 1", 1), ("-1, 1", 0), ("1, -1", 1), ("-1, -1", 1)])
def test_scales_and_a_factor_in_registers(signs: str, keep: int) -> None:
    rng = np.random.default_rng(1)
    (a, x), (b, y) = elements("f16", (64, 16), rng, True), elements("f16", (32, 16), rng, True)
    layout, memory = laid_out(b, 16, "k", 32)
    # A's registers of a thread are eight halves: row and row + 8, columns and columns + 8
    rows = np.zeros(16384, np.uint8)
    fragment = np.array(
        [
            [
                a[t // 32 * 16 + t % 32 // 4 + h * 8, t % 4 * 2 + 8 * q + i]
                for q in range(2)
                for h in range(2)
                for i in range(2)
            ]
            for t in range(128)
        ],
        np.uint16,
    )
    rows[:2048] = fragment.reshape(-1).view(np.uint8)
    before = "    mul.wide.u32 %rd15, %r0, 16; add.s64 %rd15, %rd0, %rd15; ld.global.v4.u32 {%r20,%r21,%r22,%r23}, [%rd15];\n"
    text = f"mov.b64 %rd30, 0; mov.b64 %rd31, {layout.descriptor};" + product(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16",
        32,
        "f32",
        f", {signs}, 0",
        "{%r20,%r21,%r22,%r23}",
        before,
        keep,
    )
    arrays, _ = run(kernel(text, 3, shared=SHARED), [rows, memory, np.zeros(64 * 32, np.float32)], block=128)
    sign = np.prod([int(s) for s in signs.split(",")])
    np.testing.assert_array_equal(unpacked(arrays[2], 32, np.float32), sign * (x @ y.T) + 3 * keep)


def test_integer_sums_saturate() -> None:
    ones = np.full((64, 32), 0x7F)
    layout_a, memory_a = laid_out(ones, 8, "k", 0)
    layout_b, memory_b = laid_out(ones[:8], 8, "k", 0)
    start = f"mov.b64 %rd30, {layout_a.descriptor}; mov.b64 %rd31, {layout_b.descriptor};\n"
    for flag, wanted in ((".satfinite", 2**31 - 1), ("", 2**31 - 1 + 32 * 127**2 - 2**32)):
        text = product(f"wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8{flag}", 8, "s32", "", keep=1)
        text = text.replace(", 3;", f", {2**31 - 1};")
        arrays, _ = run(
            kernel(start + text, 3, shared=SHARED), [memory_a, memory_b, np.zeros(64 * 8, np.int32)], block=128
        )
        assert (arrays[2] == wanted).all()


def chained() -> tuple[str, list[Array], Array]:
    """Two products of one accumulator, the second 16 further along k: (kernel, arrays, result)."""
    rng = np.random.default_rng(2)
    (a, x), (b, y) = elements("f16", (64, 32), rng, True), elements("f16", (16, 32), rng, True)
    layout_a, memory_a = laid_out(a, 16, "k", 64)
    layout_b, memory_b = laid_out(b, 16, "k", 64)
    start = f"mov.b64 %rd30, {layout_a.descriptor}; mov.b64 %rd31, {layout_b.descriptor};\n"
    text = start + product("wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16", 16, "f32", ", 1, 1, 0, 0")
    first = next(line for line in text.split("\n") if "wgmma.mma_async" in line)
    second = first.replace("%rd13, %p2", "%rd17, %p3").replace("%rd12", "%rd16")
    text = text.replace(
        first, first + "\n    add.s64 %rd16, %rd12, 2; add.s64 %rd17, %rd13, 2; setp.eq.u32 %p3, 0, 0;\n" + second
    )
    return kernel(text, 3, shared=SHARED), [memory_a, memory_b, np.zeros(64 * 16, np.float32)], x @ y.T


def test_a_chain_of_products_along_k() -> None:
    text, arrays, wanted = chained()
    out, report = run(text, arrays, block=128)
    np.testing.assert_array_equal(unpacked(out[2], 16, np.float32), wanted)
    assert report.counters.by_class["tensor.f16"] == 4 * 2
    # what compilers put between products: copies of the accumulators, which are no use of them
    moved = text.replace("    add.s64 %rd16", "    mov.f32 %f50, %f100; mov.f32 %f100, %f50; add.s64 %rd16")
    out, _ = run(moved, arrays, block=128)
    np.testing.assert_array_equal(unpacked(out[2], 16, np.float32), wanted)


WAIT = "    wgmma.wait_group.sync.aligned 0;\n"


@pytest.mark.parametrize(
    ("old", "new", "kind", "says"),
    [
        (WAIT, "", "async-copy", "before `wgmma.wait_group`"),
        (WAIT, WAIT.replace("0", "1"), "async-copy", "before `wgmma.wait_group`"),
        (WAIT, "    add.f32 %f100, %f100, %f100;\n" + WAIT, "async-copy", "before `wgmma.wait_group`"),
        (WAIT, "    mov.f32 %f50, %f103; add.f32 %f51, %f50, %f50;\n" + WAIT, "async-copy", "before `wgmma.wait_group`"),
        (WAIT, "    add.f32 %f51, %f50, %f50;\n" + WAIT, "", ""),
        (WAIT, "    st.shared.u32 [left+32], %r0;\n" + WAIT, "async-copy", "still reads it"),
        (WAIT, WAIT + "    bar.sync 0; setp.eq.u32 %p5, %r0, 0; @%p5 st.shared.u32 [left+32], %r0;\n", "", ""),
        ("    wgmma.commit_group.sync.aligned;\n", "", "async-copy", "never waited for"),
        ("    wgmma.fence.sync.aligned;\n", "", "async-copy", "no `wgmma.fence`"),
        ("    bar.sync 0;\n", "", "shared-race", "nothing orders"),
        ("    fence.proxy.async.shared::cta;\n", "", "async-copy", "no `fence.proxy.async`"),
        ("add.s64 %rd16, %rd12, 2", "add.s64 %rd16, %rd12, 1000", "out-of-bounds", "past the end of `left`"),
        ("    wgmma.fence", "    setp.lt.u32 %p6, %r0, 96;\n    @!%p6 bra done;\n    wgmma.fence", "absent-lanes", "128 threads"),
    ],
)  # fmt: skip
def test_misuse_of_wgmma_is_found(old: str, new: str, kind: str, says: str) -> None:
    text, arrays, _ = chained()
    assert old in text
    changed = text.replace(old, new, 1).replace("    ret;", "done:\n    ret;")
    _, report = run(changed, arrays, block=128, check="collect")
    found = [f for f in report.findings if f.kind == kind]
    assert bool(found) == bool(kind), report.findings
    assert kind or not report.findings
    assert not says or any(says in f.message for f in found), found


def test_groups_may_stay_open() -> None:
    """A wait for all but the newest group makes the older one's registers readable, and only those."""
    text, arrays, _ = chained()
    first, second = (line for line in text.split("\n") if "wgmma.mma_async" in line)
    parted = text.replace(first, first + "\n    wgmma.commit_group.sync.aligned;").replace(WAIT, WAIT.replace("0", "1"))
    other = second.replace("%f1", "%f2")
    loads = "".join(f"    mov.f32 %f{200 + i}, 0f00000000;\n" for i in range(8))
    parted = parted.replace(second, other).replace("    wgmma.fence", loads + "    wgmma.fence", 1)
    end = "    wgmma.wait_group.sync.aligned 0;\n    ret;"
    _, report = run(parted.replace("    ret;", end), arrays, block=128, check="collect")
    assert not report.findings
    early = parted.replace("    ret;", "    add.f32 %f50, %f201, %f201;\n" + end)
    _, report = run(early, arrays, block=128, check="collect")
    assert kinds(report) == {"async-copy"}


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("m64n16k16", "m64n16k8", "shape"), (", 1, 1, 0, 0;", ", 2, 1, 0, 0;", "scales"), ("{%f100, ", "{", "registers"),
        ("f32.f16.f16", "f32.tf32.tf32", "shape"),
    ],
)  # fmt: skip
def test_what_is_no_such_product_is_refused(old: str, new: str, what: str) -> None:
    text, arrays, _ = chained()
    with pytest.raises(Exception, match=what) as found:
        run(text.replace(old, new), arrays, block=128)
    assert getattr(found.value, "code", "")[:4] == "FX07"


def test_two_warpgroups_multiply_for_themselves() -> None:
    text, arrays, wanted = chained()
    text = text.replace("setp.lt.u32 %p1, %r4, 1024;", "setp.lt.u32 %p1, %r4, 1024; setp.ge.u32 %p7, %r0, 128;")
    out, report = run(text, [arrays[0], arrays[1], np.zeros((2, 64 * 16), np.float32)], block=256, check="collect")
    for half in out[2]:
        np.testing.assert_array_equal(unpacked(half, 16, np.float32), wanted)
    assert isinstance(report, vgpu.Report)
